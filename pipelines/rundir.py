"""The run directory: one for one spec, safe to come back to after any crash."""

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from schemas.errors import SpecError
from schemas.job import JobSpec, fixed_part, models_gone, revisable_part
from schemas.manifest import Manifest
from schemas.student import TRAINED_ON
from services.journal.index import JournalIndex
from services.journal.place import Journal

VERSIONS = ("limbeck", "ray", "openai", "anthropic", "pydantic", "pyarrow", "torch", "transformers", "xllamacpp")
BYTES_A_ROW = 6_000  # a long answer as a provider sends it, 4.3 kB in the journal, and twice as a row, compressed
BYTES_A_RUN = 64 * 2**20
WRITING = threading.RLock()  # one text at a time; whoever keeps it has the last word
ANEW = "delete it where it was damaged: the next start writes it anew, and what is paid for is kept in journal/"


class RunDirectory:
    """Paths of a run, its manifest and its lock."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.spec_file = self.root / "job.yaml"
        self.manifest_file = self.root / "manifest.json"
        self.journal = self.root / "journal"
        self.dataset = self.root / "dataset"
        self.rejected = self.root / "rejected"
        self.messages = self.root / "dataset.jsonl"
        self.card = self.root / "README.md"
        self.report = self.root / "report.html"
        self.student = self.root / "student"
        self.work = self.root / ".work"
        self._held = contextlib.ExitStack()
        self.is_held = False  # whether this process has opened the run

    def check(self, spec: JobSpec) -> None:
        """`SpecError` if the directory is not this spec's to use. Touches nothing."""
        nearest = next(path for path in (self.root, *self.root.parents) if path.exists())
        if not nearest.is_dir():
            raise SpecError(f"--out {self.root}: {nearest} is a file", "name a folder")
        if (earlier := self.earlier()) is not None:
            before, now = fixed_part(earlier), fixed_part(spec)
            gone = models_gone(earlier, spec)
            if not gone or not gone & JournalIndex(Journal(self.journal, earlier.journal).read()).totals.models:
                now["teachers"] = before["teachers"]
            changed = differences(before, now)
            if changed:
                raise SpecError(
                    f"{self.root} was made by another spec: {'; '.join(changed[:3])}"
                    + (f" and {len(changed) - 3} more" if len(changed) > 3 else ""),
                    "choose another --out; nothing was touched",
                )
        elif self.root.exists() and not self.is_run and any(self.root.iterdir()):
            raise SpecError(f"{self.root} is not empty and not a run directory", "choose another --out")

    def earlier(self) -> JobSpec | None:
        """The spec of the last start, None before the first."""
        return _loaded(self.spec_file) if self.is_run and self.spec_file.exists() else None

    @property
    def is_run(self) -> bool:
        """Whether the folder was made by a run: somebody's own folder may well hold a job.yaml."""
        return (self.root / ".lock").exists() or (self.manifest_file.exists() and self.journal.exists())

    def changes(self, spec: JobSpec) -> list[str]:
        """What of the data `spec` revises, against the last start."""
        earlier = self.earlier()
        return [] if earlier is None else differences(revisable_part(earlier), revisable_part(spec))

    def require_space(
        self, rows: int, student: int = 0, texts: int = 0, free: Callable[[Path], int] | None = None
    ) -> None:
        """`SpecError` if the disk cannot hold a run of `rows` rows, a student of `student` bytes and `texts` bytes of
        the source's. `free` gives the free bytes at a path."""
        place = next(p for p in (self.root, *self.root.parents) if p.exists())
        left = (free or (lambda path: shutil.disk_usage(path).free))(place)
        needed = BYTES_A_RUN + rows * BYTES_A_ROW + student + texts
        if left < needed:
            raise SpecError(
                f"no free disk: {place} has {left / 2**20:.0f} MiB, {rows} rows"
                + f"{' and a student' if student else ''} may need {needed / 2**20:.0f} MiB",
                "free some space, or choose --out on another disk",
            )

    def open(self, spec: JobSpec, manifest: Manifest | None = None) -> None:
        """Create or take over the directory; `SpecError` while another process runs in it.

        `manifest`, which says that the run is under way, is written before the spec: a finished run of one spec must
        never be taken for one of another.
        """
        text = yaml.safe_dump(spec.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(locked(self.root / ".lock"))
            self.is_held = True
        except OSError as error:
            raise SpecError(f"--out {self.root}: {error.strerror}", "choose a folder that can be written") from None
        try:
            Journal(self.journal, spec.journal).wait_for_writers()  # of an earlier start whose workers outlived it
        except SpecError:
            self.close()
            raise
        self.journal.mkdir(exist_ok=True)
        self.work.mkdir(exist_ok=True)
        if manifest is not None:
            self.save(manifest)
        replace_text(self.spec_file, text)

    def close(self) -> None:
        self._held.close()
        self.is_held = False

    def has_student_of_other_rows(self, sha256: str) -> bool:
        """Whether there is a student that learned from this run's rows when they were others than those of `sha256`."""
        try:
            made = json.loads((self.student / TRAINED_ON).read_text())
            data = made["train"].get("data") or {}
            return not (data.get("path") or data.get("run")) and made["data"] != sha256
        except (OSError, ValueError, KeyError):
            return False

    def is_in_use(self) -> bool:
        """Whether a process holds the run."""
        try:
            lock = os.open(self.root / ".lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def manifest(self) -> Manifest | None:
        """The manifest as last written, None before the first."""
        try:
            return Manifest.model_validate_json(self.manifest_file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            raise SpecError(f"{self.manifest_file} is not a manifest", ANEW) from None

    def save(self, manifest: Manifest) -> None:
        replace_text(self.manifest_file, manifest.model_dump_json(indent=2) + "\n")

    def scratch(self, name: str) -> Path:
        """An empty folder to build something in before it is moved into place."""
        path = self.work / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; `SpecError` while another process does."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpecError(f"{path.parent} is in use by another limbeck run", "wait for it to end") from None
        yield
    finally:
        os.close(lock)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, after a power loss too."""
    temporary = path.with_name(path.name + ".new")
    with WRITING:
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)


def move_folder(built: Path, place: Path) -> None:
    """Put a finished folder in place of an older one."""
    old = built.with_name(built.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        place.rename(old)
    built.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _loaded(path: Path) -> JobSpec:
    try:
        return JobSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValueError, yaml.YAMLError):
        raise SpecError(f"{path} is not a job spec of this version", ANEW) from None


def require_folder(place: Path) -> None:
    """Make the folder of an --out. `SpecError` where nothing can be written there."""
    if place.exists() and not place.is_dir():
        raise SpecError(f"--out {place}: it is a file", "name a folder")
    try:
        place.absolute().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"--out {place}: {error.strerror}", "name a folder that can be written to") from None
    if not os.access(place, os.W_OK):
        raise SpecError(f"--out {place}: nothing can be written there", "name another folder")


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """`key: was X, is Y` for every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted({*before, *now})
            for line in differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    if before == now:
        return []
    was, is_ = (json.dumps(v, ensure_ascii=False)[:60] for v in (before, now))
    return [f"{path}: was {was}, is {is_}"]


def installed_versions() -> dict[str, str]:
    """Versions of what decides a run."""
    found = {}
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
