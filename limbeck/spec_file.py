"""Read a spec from YAML, apply `--set` overrides, resolve its paths."""

import copy
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from schemas.errors import SpecError, refused_as_spec
from schemas.evaluation import EvaluationSpec, named
from schemas.explain import spec_error
from schemas.job import JobSpec
from schemas.lane import Strict
from schemas.student import TrainingSpec

Spec = TypeVar("Spec", bound=Strict)
Job = JobSpec | dict[str, Any] | str | Path
Training = TrainingSpec | dict[str, Any] | str | Path
Evaluation = EvaluationSpec | dict[str, Any] | str | Path
PATHS = (("source", "path"), ("prompt", "exemplars"), ("train", "data", "path"), ("train", "data", "run"),
         ("data", "path"), ("data", "run"), ("train", "student", "from"), ("student", "from"),
         ("train", "student"), ("student",), ("train", "teacher"), ("teacher",), ("objective", "lm", "path"),
         ("train", "objective", "lm", "path"), ("objective", "cache"), ("train", "objective", "cache"),
         ("k_shot", "pool"), ("evaluate", "k_shot", "pool"), ("lm_eval_tasks",),
         ("evaluate", "lm_eval_tasks"), ("evaluate", "teacher"), ("evaluate", "data", "path"),
         ("evaluate", "data", "run"))  # fmt: skip


LONGEST_NAME = 255  # bytes of a file name, on every file system in common use


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a spec file."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise SpecError(f"spec {path}: nested too deeply", "start from examples/quickstart.yaml") from None
    except OSError as error:
        raise SpecError(f"spec {path}: {error.strerror}", "name a YAML file; examples/ has some") from None
    except UnicodeDecodeError:
        raise SpecError(f"spec {path}: not UTF-8 text", "save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        what = str(getattr(error, "problem", None) or "unreadable")
        # An undefined alias or tag is quoted there: *sk-... and !sk-... are keys in the wrong place.
        problem = f"spec {path}{where}: not valid YAML: {re.sub(r'(alias|tag) .*', chr(92) + '1', what)}"
        raise SpecError(problem, "check indentation, colons and quotes there; examples/ has specs that work") from None
    except ValueError as error:  # a date that is none, as in 2020-13-45
        raise SpecError(f"spec {path}: not valid YAML: {error}", "put the value in quotes") from None
    if not isinstance(found, dict):
        raise SpecError(f"spec {path}: not a mapping of keys to values", "start from examples/quickstart.yaml")
    return found


class Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, "this key stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.2, and everybody who writes a learning rate, takes 3e-4 for a number; PyYAML's YAML 1.1 wants 3.0e-4.
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def require_unicode(value: Any, path: str = "the spec") -> None:
    """`SpecError` for text that UTF-8 cannot hold (a lone surrogate): no file or request could carry it."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        require_unicode(part, str(key) if path == "the spec" else f"{path}.{key}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise SpecError(f"{path}: not valid Unicode (a lone surrogate)", "write the character itself") from None


def override(spec: dict[str, Any], setting: str) -> None:
    """Apply one `a.b=c`; `c` is read as YAML, and a number in the path indexes a list."""
    path, equals, text = setting.partition("=")
    if not equals or not re.fullmatch(r"\s*[\w.-]+\s*", path):
        typed = re.match(r"[\w.]*", setting)  # no more of it: what follows may be a key
        raise SpecError(
            f"--set {typed.group() if typed else ''}: not of the form key.key=value",
            "as in sampling.temperature=0 of a job, epochs=2 of a training",
        )
    try:
        value = yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError):
        raise SpecError(f"--set {path}: the value is not valid YAML", "quote it") from None
    *parents, last = path.strip().split(".")
    here: Any = spec
    for key in parents:
        here = _step(here, key, setting)
    if isinstance(here, list):
        _step(here, last, setting)
        here[int(last)] = value
    else:
        here[last] = value


def _step(here: Any, key: str, setting: str) -> Any:
    if isinstance(here, list):
        if not key.isdecimal() or int(key) >= len(here):
            raise SpecError(
                f"--set {setting.partition('=')[0]}: {key!r} is not a place in a list of {len(here)}", "count from 0"
            )
        return here[int(key)]
    if here.get(key) is None:
        here[key] = {}
    if not isinstance(here[key], dict | list):
        raise SpecError(f"--set {setting.partition('=')[0]}: {key!r} holds a value, not keys", "name the key itself")
    return here[key]


def resolve_paths(spec: dict[str, Any], folder: Path) -> None:
    """Make paths absolute: relative to the spec's folder, or else to the current one where only that has them."""
    teachers = spec.get("teachers")
    lanes = [t for t in teachers if isinstance(t, dict)] if isinstance(teachers, list) else []
    places = [(lane, "model") for lane in lanes if lane.get("provider") == "embedded"]
    places += [(lane, "path") for lane in lanes]
    judged = [part for part in (spec, spec.get("evaluate")) if isinstance(part, dict) and "students" in part]
    for part in judged:
        part["students"] = students = named(part["students"])
        places += [(students, name) for name in students] if isinstance(students, dict) else []
    for *parents, last in PATHS:
        here: Any = spec
        for key in parents:
            here = here.get(key) if isinstance(here, dict) else None
        if isinstance(here, dict):
            places.append((here, last))
    for here, key in places:
        value = here.get(key)
        if not isinstance(value, str) or not value or "://" in value or value.startswith("hf:"):
            continue
        if any(c < " " for c in value) or max(len(part.encode()) for part in value.split("/")) > LONGEST_NAME:
            raise SpecError(f"{key}: {value[:60]!r} cannot be a path", "name a file or a folder")
        is_model = key in ("model", "student", "teacher", "from") or any(here is part["students"] for part in judged)
        expanded = os.path.expanduser(value)  # noqa: PTH111 - the method raises for an unknown user
        beside, current = folder / expanded, Path.cwd() / expanded
        if is_model and not (beside.exists() or current.exists()):
            continue  # a model's name, not a path
        chosen = current if current.exists() and not beside.exists() else beside
        here[key] = os.path.normpath(chosen.absolute())  # a path of two spellings must not make two specs


def load_spec(path: Path, model: type[Spec], settings: list[str]) -> Spec:
    """A validated spec. Every problem is a `SpecError` of one line."""
    with refused_as_spec():
        return _validated(read_yaml(path), model, settings, path.absolute().parent, f"spec {path}")


def spec_of(given: Spec | dict[str, Any] | str | Path, model: type[Spec]) -> Spec:
    """A spec as a program gives it: validated already, as its keys and values, or as its file's path. `SpecError` as
    for a file; paths among the values are relative to the current folder."""
    if isinstance(given, model):
        return given
    if isinstance(given, str | Path):
        return load_spec(Path(given), model, [])
    with refused_as_spec():
        if not isinstance(given, dict):
            raise SpecError(
                f"spec: of type {type(given).__name__}", f"give a file's path, a dict or a {model.__name__}"
            )
        return _validated(copy.deepcopy(given), model, [], Path.cwd(), "spec")


def _validated(raw: dict[str, Any], model: type[Spec], settings: list[str], folder: Path, name: str) -> Spec:
    try:
        for setting in settings:
            override(raw, setting)
        require_unicode(raw)
        resolve_paths(raw, folder)
        return model.model_validate(raw)
    except ValidationError as error:
        raise spec_error(model, error) from None
    except RecursionError:
        raise SpecError(f"{name}: nested too deeply, or an alias within itself", "write it out") from None


def load_job(path: Path, settings: list[str]) -> JobSpec:
    return load_spec(path, JobSpec, settings)


def load_evaluation(path: Path, settings: list[str]) -> EvaluationSpec:
    return load_spec(path, EvaluationSpec, settings)


def load_training(path: Path, settings: list[str]) -> TrainingSpec:
    return load_spec(path, TrainingSpec, settings)
