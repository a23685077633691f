"""`limbeck train` on two workers: whatever is killed or lost on the way, the student is the same."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import transformers
import yaml
from conftest import Finished, Limbeck, wait_until
from pydantic import ValidationError

from schemas.student import TrainingSpec

pytestmark = [pytest.mark.ray, pytest.mark.first]
Command = Callable[..., Finished]
WORDS = ("red", "green", "blue", "white", "black")


def reached(out: Path, step: int) -> None:
    """Wait until a training has logged that step."""
    told = out / ".work" / "train-progress.json"
    wait_until(lambda: told.exists() and json.loads(told.read_text()).get("step", 0) >= step, f"step {step}")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainings")


@pytest.fixture(scope="session")
def spec(place: Path) -> Path:
    """A training of two workers on 200 pairs, and on one whose prompt is longer than the student reads."""
    pairs = [{"prompt": f"Repeat {a} {b}: ", "response": f"{a} {b}"} for a in WORDS for b in WORDS] * 8
    pairs.append({"prompt": "Repeat " + "red " * 200, "response": "red"})
    data = place / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    student = {"scratch": {"arch": "llama", "layers": 2, "hidden": 64, "heads": 2, "vocab": 320}}
    body = {
        "student": student, "data": {"path": str(data)}, "max_length": 48, "batch_size": 1, "packing": False,
        "workers": 2, "epochs": 1, "learning_rate": 0.001, "eval_fraction": 21 / 201, "checkpoints": {"every": 20},
    }  # fmt: skip
    found = place / "spec.yaml"
    found.write_text(yaml.safe_dump(body))
    return found


@pytest.fixture(scope="session")
def undisturbed(spec: Path, place: Path, ray_cluster: None) -> Path:
    """The student that it makes where nothing happens but that another training ended there before its first
    checkpoint."""
    from limbeck import jobs
    from limbeck.spec_file import load_training

    mine = load_training(spec, [])
    stale = place / "quiet" / ".work" / "trainer"
    (stale / "rows").mkdir(parents=True)
    (stale / "rows" / "about.json").write_text("{}")
    other = mine.model_copy(update={"seed": 9})
    (stale / "made_of.json").write_text(json.dumps(jobs.origin_of(other)))
    jobs.train(mine, place / "quiet")
    return place / "quiet" / "student"


def curve(student: Path) -> dict[int, float]:
    lines = (student / "losses.csv").read_text().splitlines()[1:]
    return {int(step): float(loss) for step, loss in (line.split(",") for line in lines)}


def test_a_student_from_scratch_learns_and_loads(undisturbed: Path) -> None:
    metrics = json.loads((undisturbed / "metrics.json").read_text())
    assert metrics["loss_after"] < 0.7 * metrics["loss_before"]
    assert metrics["rows_train"] + metrics["rows_eval"] == 200 and metrics["rows_too_long"] == 1
    assert (undisturbed / "curve.png").read_bytes()[:4] == b"\x89PNG"
    model = transformers.AutoModelForCausalLM.from_pretrained(undisturbed)
    assert model.config.vocab_size == len(transformers.AutoTokenizer.from_pretrained(undisturbed))


def test_a_killed_training_goes_on_and_ends_where_an_undisturbed_one_does(
    command: Command, limbeck: Limbeck, undisturbed: Path, spec: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    running = limbeck.start("train", spec, "--out", out)
    reached(out, 25)
    os.killpg(running.pid, signal.SIGTERM)  # reaches Ray's processes, too, as that of `timeout` does
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130 and "limbeck: interrupted" in said
    running = limbeck.start("train", spec, "--out", out)
    try:
        reached(out, 50)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    kept = [int(p.parent.name.rpartition("-")[2]) for p in (out / ".work" / "trainer").glob("*/whole")]
    assert max(kept) >= 40
    other = command("train", spec, "--out", out, "--set", "learning_rate=0.1")
    assert other.returncode == 2 and "learning_rate: was 0.001, is 0.1" in other.stderr
    os.utime(spec.with_name("pairs.jsonl"))  # touched, and the same
    done = command("train", spec, "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"note: going on from step {max(kept)}" in done.stderr
    assert curve(out / "student") == curve(undisturbed)
    other = command("train", spec, "--out", out, "--set", "learning_rate=0.1")
    assert other.returncode == 2 and "was made by another spec: train.learning_rate" in other.stderr
    quiet, killed = (json.loads((one / "metrics.json").read_text()) for one in (undisturbed, out / "student"))
    for name in ("loss_before", "loss_after", "rouge_l_before", "rouge_l_after", "steps"):
        assert quiet[name] == killed[name]
    assert not (out / ".work" / "trainer").exists()


def test_a_training_that_loses_its_controller_says_so_and_goes_on_when_it_is_run_again(
    command: Command, limbeck: Limbeck, undisturbed: Path, spec: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lost"
    running = limbeck.start("train", spec, "--out", out)
    reached(out, 50)
    controller = [p for p in psutil.Process(running.pid).children(recursive=True) if "TrainController" in p.name()]
    for one in controller:
        one.kill()
    _, said = running.communicate(timeout=120)
    assert running.returncode == 1 and "Ray lost a process" in said and "Traceback" not in said
    done = command("train", spec, "--out", out)
    assert done.returncode == 0, done.stderr
    assert curve(out / "student") == curve(undisturbed)


def test_a_training_that_loses_a_machine_goes_on_with_what_is_left_and_learns_the_same(
    limbeck: Limbeck, undisturbed: Path, spec: Path, tmp_path: Path
) -> None:
    """Though each machine held but a share of the weights: checkpoints are whole."""
    from ray.cluster_utils import Cluster

    out, elastic = tmp_path / "out", tmp_path / "elastic.yaml"
    changed = {**yaml.safe_load(spec.read_text()), "min_workers": 1, "sharding": True}
    elastic.write_text(yaml.safe_dump(changed))
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = machines.add_node(num_cpus=1)
        machines.wait_for_nodes()
        soon = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
        running = limbeck.start("train", elastic, "--out", out, "--address", machines.address, environment=soon)
        reached(out, 25)
        machines.remove_node(second, allow_graceful=False)
        _, said = running.communicate(timeout=240)
    finally:
        machines.shutdown()
    assert running.returncode == 0, said
    found, whole = curve(out / "student"), curve(undisturbed)
    assert found.keys() == whole.keys()
    assert [*found.values()] == pytest.approx([*whole.values()], rel=1e-3)
    quiet, lost = (json.loads((one / "metrics.json").read_text()) for one in (undisturbed, out / "student"))
    assert lost["loss_after"] == pytest.approx(quiet["loss_after"], rel=1e-3)
    assert transformers.AutoModelForCausalLM.from_pretrained(out / "student").num_parameters() == quiet["parameters"]


def test_a_step_must_be_the_same_with_any_number_of_workers() -> None:
    with pytest.raises(ValidationError, match=r"4 batches .* over 3 workers: set accumulation to a multiple of 3"):
        TrainingSpec.model_validate({"student": "s", "workers": 4, "min_workers": 2})
    TrainingSpec.model_validate({"student": "s", "workers": 4, "min_workers": 2, "accumulation": 3})
    with pytest.raises(ValidationError, match="min_workers 3 is more than workers 2"):
        TrainingSpec.model_validate({"student": "s", "workers": 2, "min_workers": 3})
