"""The house: arrows point down, files stay small, importing the front door is cheap."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "schemas": set(),
    "services": {"schemas"},
    "training": {"schemas"},
    "pipelines": {"schemas", "services"},
    "limbeck": {"schemas", "services", "pipelines", "training"},
}
HEAVY = {"ray", "torch", "openai", "anthropic", "datasets", "transformers"}
LONGEST_FILE = 500
EXCEPTIONS: set[str] = set()


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            assert isinstance(node.args[0], ast.Constant), f"{path}: an import that cannot be read"
            yield str(node.args[0].value)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    for path in sources(room):
        rooms = {name.split(".")[0] for name in imports(path)} & set(MAY_IMPORT)
        assert rooms <= MAY_IMPORT[room] | {room}, f"{path.relative_to(ROOT)} imports {rooms}"


def test_schemas_import_the_standard_library_and_pydantic_alone() -> None:
    for path in sources("schemas"):
        outside = {n.split(".")[0] for n in imports(path)} - set(sys.stdlib_module_names)
        assert outside <= {"schemas", "pydantic"}, f"{path.relative_to(ROOT)} imports {outside}"


def test_no_source_file_is_longer_than_500_lines() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in sources(*MAY_IMPORT, "tests", "benchmarks")
        if (lines := len(path.read_text().splitlines())) > LONGEST_FILE
    }
    assert set(long) == EXCEPTIONS, long


def test_importing_limbeck_imports_nothing_heavy() -> None:
    code = "import sys, limbeck, limbeck.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_the_rooms_that_are_imported_are_these() -> None:
    import schemas

    assert Path(schemas.__file__).parent == ROOT / "schemas"


def test_every_dependency_is_pinned() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    listed = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("]\n\n")[0]
    names = {
        line.strip().strip('",').split(">=")[0].split("[")[0].lower() for line in listed.splitlines() if ">=" in line
    }
    assert len(names) > 15
    assert names <= pinned
