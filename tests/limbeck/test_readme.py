"""What the README and the examples promise: their specs are valid, and run."""

import hashlib
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Limbeck
from teacher_server import teacher_server

from limbeck.spec_file import load_evaluation, load_job, load_training
from schemas.objective import OBJECTIVE_NAMES, OBJECTIVES
from training.examples import check_data


def seeds() -> list[dict[str, str]]:
    return [json.loads(line) for line in (ROOT / "examples/quickstart-seeds.jsonl").read_text().splitlines()]


def readme_spec(folder: Path) -> Path:
    """The README's job for one's own file and an OpenAI key, saved as it says, beside rows of that shape."""
    found = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None and found.group(1).count("\n") == 8
    (folder / "job.yaml").write_text(found.group(1))
    rows = [json.dumps({"input": seed["instruction"]}) for seed in seeds()[:30]]
    (folder / "questions.jsonl").write_text("\n".join(rows))
    return folder / "job.yaml"


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.yaml")))
def test_every_example_is_a_valid_job_with_its_data_beside_it(name: str) -> None:
    assert Path(load_job(ROOT / "examples" / name, []).source.path).is_file()


@pytest.mark.parametrize("name", sorted(OBJECTIVE_NAMES))
def test_every_objective_has_an_example_with_its_data_beside_it(name: str) -> None:
    spec = load_training(ROOT / "examples" / "students" / f"{name}.yaml", [])
    assert spec.objective.name == name
    check_data(spec.data, spec.objective)


def test_the_example_of_a_comparison_asks_what_the_other_examples_learn() -> None:
    spec = load_evaluation(ROOT / "examples" / "evaluation" / "compare.yaml", [])
    assert spec.data.path == str(ROOT / "examples" / "students" / "pairs.jsonl")
    assert spec.students.keys() == {"sft", "kd", "hidden"} < OBJECTIVES.keys()


def test_the_quickstart_has_seeds_enough() -> None:
    assert len({seed["id"] for seed in seeds()}) == len({seed["instruction"] for seed in seeds()}) >= 96


@pytest.mark.ray
def test_the_job_of_the_readme_runs_against_any_compatible_server_and_the_key_is_found_nowhere(
    limbeck: Limbeck, tmp_path: Path
) -> None:
    spec, run, key = readme_spec(tmp_path), tmp_path / "run", "sk-canary-5f2e"
    with teacher_server("--price", "0.40:1.60") as teacher, TemporaryDirectory(prefix="ray") as ray_place:
        there = f"teachers.0.base_url={teacher.base_url}"
        named = "teachers.0.api_key=env:OPENAI_API_KEY"  # which is understood only where the lane is OpenAI itself
        settings = ("--set", there, "--set", named)
        # The folder's path is short, for Ray's sockets lie in it.
        done = limbeck("run", spec, "--out", run, *settings, OPENAI_API_KEY=key, RAY_TMPDIR=ray_place)
        assert done.returncode == 0, done.stderr
        bill = teacher.bill()
        logs = [path for path in Path(ray_place).rglob("*") if path.is_file() and not path.is_symlink()]
        assert any(path.name.startswith("worker") for path in logs)
        assert not [path for path in logs if key.encode() in path.read_bytes()]
    said = json.loads((run / "manifest.json").read_text())
    assert said["rows"]["accepted"] == 30 == bill["calls"]
    assert pq.read_table(run / "dataset").num_rows == 30
    assert said["spend"]["usd"] == bill["usd"]
    assert bill["keys"] == [hashlib.sha256(key.encode()).hexdigest()[:16]]
    assert not [p for p in run.rglob("*") if p.is_file() and key.encode() in p.read_bytes()]
    assert key not in done.stdout + done.stderr
