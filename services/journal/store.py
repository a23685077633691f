"""Sealed segments on an object store, by pyarrow's file systems: s3://, gs://, abfs://, hdfs://, file://."""

import contextlib
import fcntl
import functools
import os
import tempfile
from pathlib import Path
from typing import Any

from schemas.errors import LimbeckError, SpecError

CHECK = "limbeck-check"


@functools.cache
def _opened(url: str) -> tuple[Any, str]:
    """(file system, path). Kept: to find a bucket's region, pyarrow asks the net."""
    from pyarrow import fs

    found: tuple[Any, str] = fs.FileSystem.from_uri(url)
    return found


class Store:
    """The segments under one URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, self._path = _opened(url)
        except (ValueError, OSError, NotImplementedError) as error:
            raise SpecError(f"journal: {first_line(error)}", "as in s3://bucket/folder?region=eu-west-1") from None
        self._local = self._files.type_name == "local"

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def names(self, ending: str = ".seg") -> set[str]:
        """Segments that are there, or other objects."""
        from pyarrow import fs

        found = self._files.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        return {info.base_name for info in found if info.base_name.endswith(ending)}

    def read(self, name: str) -> bytes:
        """What an object holds; `FileNotFoundError` where it is not there."""
        with self._files.open_input_stream(self._at(name)) as stream:
            return bytes(stream.read())

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._at(name))

    def put(self, path: Path) -> None:
        """Make a log a sealed segment, then forget the log. The object appears whole or not at all."""
        data = path.read_bytes()
        if data:
            self._seal(path.name, data)
        path.unlink(missing_ok=True)

    def _seal(self, name: str, data: bytes) -> None:
        """Write a segment, which never changes."""
        there = self._files.get_file_info(self._at(name))
        if there.is_file:
            if there.size == len(data):
                return  # shipped before, by a writer that died before it could forget the log
            raise OSError(f"{name} is there already with {there.size} bytes: two runs write to one journal")
        self.write(name, data)

    def write(self, name: str, data: bytes) -> None:
        """Write an object, in place of an older one of its name. `OSError` where it is not whole."""
        place = self._at(name)
        if self._local:
            self._files.create_dir(self._path, recursive=True)
        # Object stores show an object once its stream is closed; a local file is written aside.
        target = f"{place}.new" if self._local else place
        with self._files.open_output_stream(target) as stream:
            stream.write(data)
        if self._local:
            self._files.move(target, place)
        size = self._files.get_file_info(place).size
        if size != len(data):
            raise OSError(f"{name} has {size} bytes there, {len(data)} were sent")

    def adopt(self, path: Path) -> bool:
        """Seal the log of a dead writer; False where its writer lives. `LimbeckError` where the store fails."""
        try:
            log = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True  # its writer, or another finder, was faster
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.put(path)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return not path.exists()
        except OSError as error:
            what = f"journal {self.url}: {first_line(error)}"
            raise LimbeckError(what, "run again when the store answers: the log was kept") from None
        finally:
            os.close(log)
        return True

    def bring(self, place: Path) -> None:
        """Copy segments that are not in `place` yet. Sealed segments never change."""
        place.mkdir(parents=True, exist_ok=True)
        try:
            missing = sorted(self.names() - {path.name for path in place.glob("*.seg")})
            for name in missing:
                _write_whole(place / name, self.read(name))
        except OSError as error:
            raise LimbeckError(f"journal {self.url}: {first_line(error)}", "run again when the store answers") from None

    def check(self) -> None:
        """`SpecError` where nothing can be written, read or removed."""
        try:
            self.write(CHECK, b"limbeck")
            self.names()
            self.remove(CHECK)
        except (OSError, ValueError) as error:
            hint = "check the bucket, the region and the credentials in the environment"
            raise SpecError(f"journal {self.url}: {first_line(error)}", hint) from None


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing; two processes may bring the same one."""
    handle, name = tempfile.mkstemp(prefix=".bringing-", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(name).replace(path)


def first_line(error: BaseException) -> str:
    """What an error says, without what pyarrow adds below it."""
    lines: Any = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
