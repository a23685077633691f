"""Bad input at the command line: one line and a hint, status 2, no teacher called, nothing left behind."""

import json
import socket
from collections.abc import Callable
from datetime import date
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import Limbeck
from teacher_server import teacher_server
from typer.testing import CliRunner

import limbeck as api
from limbeck.cli import app
from limbeck.jobs import origin_of
from limbeck.spec_file import load_job
from schemas.errors import LimbeckError, SpecError
from schemas.student import Scratch, TrainingSpec
from services.cluster import connect
from training.students import from_scratch, train_tokenizer

Write = Callable[..., Path]


def refused(*arguments: Any) -> str:
    """The error line of a command that must fail before the first call."""
    no_keys = {"OPENAI_API_KEY": None, "ANTHROPIC_API_KEY": None, "HF_HUB_OFFLINE": "1"}
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env=no_keys)
    assert done.exit_code == 2, (done.stderr, done.exception)
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("limbeck: ")
    assert len(lines) <= 2 and "Traceback" not in done.stderr
    return lines[0]


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        inner = {"type": "array", "items": inner}
    return inner


def test_a_spec_that_is_not_there_or_not_yaml_or_not_a_mapping(tmp_path: Path) -> None:
    out = tmp_path / "run"
    bad, listing = tmp_path / "bad.yaml", tmp_path / "list.yaml"
    bad.write_text("name: [unclosed\n")
    listing.write_text("- a\n")
    assert "No such file" in refused("run", tmp_path / "absent.yaml", "--out", out)
    assert "not valid YAML" in refused("run", bad, "--out", out)
    assert "not a mapping" in refused("run", listing, "--out", out)
    assert not out.exists()


def test_an_error_that_quotes_a_row_leaves_the_terminal_as_it_is(job: Write, jsonl: Write, tmp_path: Path) -> None:
    rows = jsonl([{"id": 1, "\x1b[2Jquestion": "What?"}])
    said = refused("run", job(rows), "--out", tmp_path / "run")
    assert "?[2Jquestion" in said and "\x1b" not in said


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"sampling": {"temprature": 1}}, "unknown key sampling.temprature"),
        ({"sampling": {"temperature": "hot"}}, "sampling.temperature: 'hot'"),
        ({"source": {"path": "absent.jsonl"}}, "source missing"),
        ({"teachers": [{"provider": "openai", "model": "m", "free": True}]}, "env:OPENAI_API_KEY"),
        (
            {"teachers": [{"provider": "openai", "model": "m", "free": True, "api_key": "file:/absent/key"}]},
            "/absent/key",
        ),
        ({"teachers": [{"provider": "embedded", "model": "/absent.gguf"}]}, "/absent.gguf"),
        ({"prompt": {"style": "few-shot", "exemplars": "absent.jsonl"}}, "prompt.exemplars"),
        ({"train": {"student": "/absent/model"}}, "/absent/model"),
        ({"source": {"path": "a\0b.jsonl"}}, "path: "),
        ({"source": {"path": "x" * 300}}, "path: "),
        ({"train": {"student": {"scratch": {"layers": 10**9}}}}, "train.student.scratch.layers"),
        ({"train": {"student": {"scratch": {}}, "seed": 2**80}}, "train.seed"),
        ({"train": {"student": "no-such-model"}}, "student no-such-model: no such file, and the Hub is off"),
        ({"source": {"path": "hf:nobody/nothing"}}, "hf:nobody/nothing: no such file, and the Hub is off"),
        ({"teachers": [{"provider": "scripted", "limits": {"rpm": 10**400}}]}, "limits.rpm"),
        ({"sampling": {"max_tokens": 10**400}}, "sampling.max_tokens"),
        ({"teachers": {}}, "teachers: {}"),
        ({"pipeline": "instruct", "validate": {"json_schema": nested(300)}}, "validate.json_schema"),
        ({"pipeline": "instruct", "validate": {"json_schema": {"$ref": "#/nope"}}}, "$ref '#/nope' points nowhere"),
        ({"pipeline": "instruct", "validate": {"json_schema": {"$ref": "http://a.example/s"}}}, "lies elsewhere"),
        ({"pipeline": "instruct", "validate": {"json_schema": {"properties": {1: {}, "a": {}}}}}, "not text"),
        ({"pipeline": "instruct", "validate": {"json_schema": {"const": date(2020, 1, 1)}}}, "put dates in quotes"),
        ({"train": {"student": {"scratch": {}}, "data": {"path": ""}}}, "train.data.path"),
        (
            {"train": {"student": {"scratch": {}}, "data": {"fields": {"prompt": "input", "response": "gold"}}}},
            "'gold'",
        ),
        ({"train": {"student": {"scratch": {}}, "data": {"fields": {"prompt": "choices"}}}}, "'choices'"),
        *(
            ({"teachers": [{"provider": "openai", "model": "m", "free": True, "base_url": url}]}, "base_url")
            for url in (
                f"https://{'a' * 64}.example/v1",
                "https://a..b/v1",
                "https://a.example/%00/v1",
                "https://a.example/v1/chat/completions",
                "https://a.example/v1/completions",
            )
        ),
    ],
)
def test_a_spec_with_a_mistake(
    job: Write, questions: Path, tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    assert words in refused("run", job(questions, **sections), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nname: b\n", "stands twice"), ("name: 2020-13-45\n", "not valid YAML"),
        ("a: " + "[" * 5_000, "nested too deeply"), ("a: &x [*x]\n", "an alias within itself"),
    ],
    ids=["twice", "date", "deep", "alias"],
)  # fmt: skip
def test_a_spec_that_yaml_reads_oddly(tmp_path: Path, text: str, words: str) -> None:
    spec = tmp_path / "odd.yaml"
    spec.write_text(text)
    assert words in refused("run", spec, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("cut.csv", b"id,input\n1,What is x, y and z?\n", "more cells than the header"),
        ("twice.csv", b"id,input,input\n1,What is x?,What is y?\n", "column 'input' stands twice"),
        ("open.csv", b'id,input\n1,"What is x?\n2,What is y?\n', "source malformed"),
        ("deep.json", b"[" * 100_000, "source malformed"),
        ("bad.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03garbage", "source malformed"),
        ("half.jsonl", b'{"id": "\\ud800", "input": "x"}\n', "not valid Unicode"),
    ],
)  # fmt: skip
def test_a_source_that_is_damaged(job: Write, tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert words in refused("run", job(tmp_path / name), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "train",
    [
        {"student": {"scratch": {}}, "data": {"path": "/absent.jsonl"}},
        {"student": {"scratch": {}}, "data": {"run": "/absent"}},
        {"student": {"scratch": {}}, "data": {"template": "chat"}},
        {"student": {"from": "smollm2-135m", "layers": 99}},
        {"student": "/absent/model"},
        {"student": {"scratch": {}}, "data": {"fields": {"prompt": "question"}}},
    ],
)
def test_a_training_that_cannot_work_is_refused_before_a_teacher_is_paid(
    job: Write, questions: Path, tmp_path: Path, train: dict[str, Any]
) -> None:
    refused("run", job(questions, train=train), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_student_whose_weights_were_cut_off(job: Write, questions: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes(100))
    spec = job(questions, train={"student": str(tmp_path / "cut.gguf")})
    assert "damaged GGUF" in refused("run", spec, "--out", tmp_path / "run")


def test_a_model_that_does_not_write_text_is_no_student(job: Write, questions: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    spec = job(questions, train={"student": str(tmp_path)})
    assert "BertForMaskedLM does not write text" in refused("run", spec, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("run", "JOB"), ("run job.yaml", "--out"), ("nosuch", "nosuch"),
        ("run job.yaml --out r --worker 2", "--worker"), ("fake-teacher --rpm x", "--rpm"),
        ("fake-teacher --status 9999", "--status: 9999"), ("fake-teacher --stop-after nan", "--stop-after: nan"),
        ("fake-teacher --words 1:99999999", "--words: 1:99999999"), ("fake-teacher --spread 1e9", "--spread"),
        ("fake-teacher --price 1e308:1", "--price"), ("fake-teacher --port 70000", "--port 70000"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_named(line: str, named: str) -> None:
    assert named in refused(*line.split())


def test_a_dataset_of_one_row_trains_no_student(job: Write, jsonl: Write, tmp_path: Path) -> None:
    spec = job(jsonl([{"id": 1, "input": "What?"}]), train={"student": {"scratch": {}}})
    assert "train: 1 rows" in refused("run", spec, "--out", tmp_path / "run")


def test_a_disk_that_holds_the_rows_but_not_the_student(job: Write, questions: Path, tmp_path: Path) -> None:
    large = {"scratch": {"layers": 512, "hidden": 65_536, "heads": 64}}  # 105 TB
    spec = job(questions, train={"student": large})
    assert "40 rows and a student may need" in refused("run", spec, "--out", tmp_path / "run")


def test_a_folder_with_files_of_ones_own_is_not_taken_for_a_run(job: Write, questions: Path, tmp_path: Path) -> None:
    spec = job(questions)
    before = spec.read_text()
    assert "not a run directory" in refused("run", spec, "--out", tmp_path)
    assert spec.read_text() == before


def test_paths_that_cannot_be(job: Write, questions: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "key").write_bytes(b"\xff\xfe\x00")
    spec = job(questions)
    refused("run", spec, "--out", tmp_path / "file" / "run")
    refused("run", spec, "--out", tmp_path / ("x" * 300))
    refused("run", job("~nosuchuser/x.jsonl", "home.yaml"), "--out", tmp_path / "run")
    refused("train", spec, "--out", tmp_path / "file" / "run")
    lane = {"provider": "openai", "model": "m", "free": True, "api_key": f"file:{tmp_path / 'key'}"}
    assert "api_key file:" in refused("run", job(questions, "key.yaml", teachers=[lane]), "--out", tmp_path / "r")
    (tmp_path / "fake.gguf").write_bytes(b"not a model")
    fake = {"provider": "embedded", "model": str(tmp_path / "fake.gguf")}
    assert "not a GGUF file" in refused("run", job(questions, "g.yaml", teachers=[fake]), "--out", tmp_path / "r")


def test_no_call_reaches_the_teacher_where_the_last_row_is_bad(job: Write, jsonl: Write, tmp_path: Path) -> None:
    rows = jsonl([*({"id": i, "input": f"question {i}"} for i in range(300)), "{oops"])
    with teacher_server() as teacher:
        lane = {"provider": "openai", "model": "m", "free": True, "base_url": teacher.base_url}
        line = refused("run", job(rows, teachers=[lane]), "--out", tmp_path / "run")
        assert "rows.jsonl:301" in line
        assert teacher.bill()["calls"] == 0


@pytest.mark.parametrize("setting", ["budget", "teachers.7.model=x", "sampling.n=3", "name.deeper=1"])
def test_an_override_that_makes_no_sense_is_named(job: Write, questions: Path, tmp_path: Path, setting: str) -> None:
    line = refused("run", job(questions), "--out", tmp_path / "run", "--set", setting)
    assert setting.partition("=")[0] in line


@pytest.mark.parametrize("setting", ["api_key:sk-canary-1", "api_key:sk-canary-1==", "teachers.9.api_key=sk-canary-1"])
def test_a_setting_with_a_key_in_it_is_not_repeated(job: Write, questions: Path, tmp_path: Path, setting: str) -> None:
    assert "canary" not in refused("run", job(questions), "--out", tmp_path / "run", "--set", setting)


def test_status_of_something_that_is_no_run(tmp_path: Path) -> None:
    assert "not a run directory" in refused("status", tmp_path)


def test_a_cluster_that_is_not_there(job: Write, questions: Path, tmp_path: Path) -> None:
    line = refused("run", job(questions), "--out", tmp_path / "run", "--address", "127.0.0.1:9")
    assert "127.0.0.1:9" in line
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=lambda: listener.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")).start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        line = refused("run", job(questions), "--out", tmp_path / "run", "--address", address)
    assert "what listens there is no Ray" in line
    assert "no address of a cluster" in refused("run", job(questions), "--out", tmp_path / "run", "--address", "x")


def test_no_workers_are_too_few(job: Write, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="workers: 0"):
        api.run(load_job(job(questions), []), tmp_path / "run", workers=0)


def test_a_ray_that_does_not_start_is_one_line(
    job: Write, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def timed_out(**options: Any) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen")

    monkeypatch.setattr(ray, "init", timed_out)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(LimbeckError, match="Ray did not start: The current node timed out during startup") as told:
        connect(None)
    assert "disk" in told.value.hint and told.value.exit_status == 1


def test_training_on_data_that_is_missing_or_lacks_a_field(jsonl: Write, tmp_path: Path) -> None:
    spec = tmp_path / "train.yaml"
    spec.write_text("student: {scratch: {}}\ndata: {path: absent.jsonl}\n")
    assert "absent.jsonl" in refused("train", spec, "--out", tmp_path / "out")
    jsonl([{"prompt": "a", "reply": "b"}] * 3, "pairs.jsonl")
    spec.write_text("student: {scratch: {}}\ndata: {path: pairs.jsonl}\n")
    assert "absent field 'response'" in refused("train", spec, "--out", tmp_path / "out")
    spec.write_text("student: {scratch: {}}\n")
    assert "data is required" in refused("train", spec, "--out", tmp_path / "out")


ICL = {"objective": {"name": "icl", "soft": False}}


@pytest.mark.parametrize(
    ("pipeline", "sections", "lacks"),
    [
        ("cot", {"train": {"student": {"scratch": {}}, **ICL}}, "output"),
        ("cot", {"train": {"student": {"scratch": {}}}, "evaluate": ICL}, "output"),
        ("cot", {"train": {"student": {"scratch": {}}, "data": {"form": "alpaca"}}}, "instruction"),
        ("instruct", {"train": {"student": {"scratch": {}}, "objective": "step_by_step"}}, "input"),
    ],
    ids=str,
)  # fmt: skip
def test_a_student_that_needs_what_a_run_will_not_hold_is_told_before_anything_is_paid(
    job: Write, questions: Path, pipeline: str, sections: dict[str, Any], lacks: str
) -> None:
    with pytest.raises(SpecError, match=f"the run's dataset: absent field '{lacks}'"):
        api.plan(load_job(job(questions, pipeline=pipeline, **sections), []))
    asked = {"evaluate": {"objective": {"name": "step_by_step"}}} if pipeline == "cot" else {}
    api.plan(load_job(job(questions, pipeline=pipeline, train={"student": {"scratch": {}}}, **asked), []))


def test_a_chat_template_a_tokenizer_or_weights_that_are_not_there_are_told_before_anything_is_paid(
    job: Write, questions: Path, tmp_path: Path
) -> None:
    made = from_scratch(Scratch(), train_tokenizer(["a"], 300))
    made.model.save_pretrained(tmp_path / "made")
    made.tokenizer.save_pretrained(tmp_path / "made")
    train = {"student": str(tmp_path / "made"), "data": {"template": "chat"}}
    with pytest.raises(SpecError, match=r"data\.template: chat, but the student's tokenizer has none"):
        api.plan(load_job(job(questions, train=train), []))
    for path in (tmp_path / "made").glob("token*"):
        path.unlink()
    with pytest.raises(SpecError, match="made: "):
        api.plan(load_job(job(questions, train={"student": str(tmp_path / "made")}), []))
    (tmp_path / "made" / "model.safetensors").unlink()
    with pytest.raises(SpecError, match="made: no weights there"):
        api.plan(load_job(job(questions, train={"student": str(tmp_path / "made")}), []))


def test_a_student_folder_of_ones_own_is_left_alone(jsonl: Write, tmp_path: Path) -> None:
    jsonl([{"prompt": "a", "response": "b"}] * 3, "pairs.jsonl")
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "thesis.txt").write_text("mine")
    (tmp_path / "train.yaml").write_text("student: {scratch: {}}\ndata: {path: pairs.jsonl}\n")
    assert "no student of ours" in refused("train", tmp_path / "train.yaml", "--out", tmp_path)
    assert (tmp_path / "student" / "thesis.txt").read_text() == "mine"


def test_checkpoints_are_not_lost_to_other_rows(jsonl: Write, tmp_path: Path) -> None:
    data = jsonl([{"prompt": "a", "response": "b"}] * 3, "pairs.jsonl")
    spec = TrainingSpec.model_validate({"student": {"scratch": {}}, "data": {"path": str(data)}})
    place = tmp_path / "out" / ".work" / "trainer"
    (place / "checkpoint-8").mkdir(parents=True)
    (place / "made_of.json").write_text(json.dumps(origin_of(spec)))
    data.write_text(data.read_text().replace('"b"', '"c"'))
    with pytest.raises(SpecError, match="an unfinished training of another spec: the rows of the data are others"):
        api.train(spec, tmp_path / "out")
    (place / "made_of.json").write_text('{"train": ')  # torn
    with pytest.raises(SpecError, match=r"made_of\.json cannot be read"):
        api.train(spec, tmp_path / "out")
    assert (place / "checkpoint-8").is_dir()


def test_nothing_is_trained_where_nothing_can_be_written(jsonl: Write, tmp_path: Path) -> None:
    data = jsonl([{"prompt": "a", "response": "b"}] * 3, "pairs.jsonl")
    train = {"student": {"scratch": {}}, "data": {"path": str(data)}}
    for place, told in (
        (data, "it is a file"),
        (data / "below", "name a folder|Not a directory"),
        ("/proc/x", "/proc/x"),
    ):
        with pytest.raises(SpecError, match=told):
            api.train(train, place)
    with pytest.raises(SpecError, match=r"none\.gguf"):
        api.train({**train, "student": str(tmp_path / "none.gguf")}, tmp_path / "out")


def test_the_help_teaches_and_the_schema_names_every_section(limbeck: Limbeck) -> None:
    assert "quickstart.yaml" in limbeck("--help").stdout
    assert "130 interrupted" in " ".join(limbeck("run", "--help").stdout.split())
    assert "base_url" in limbeck("schema").stdout
    assert "learning_rate" in limbeck("schema", "--training").stdout


def test_a_path_of_two_spellings_is_one_spec(
    job: Write, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(questions)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert load_job(Path("..") / spec.name, ["source.path=../rows.jsonl"]).source.path == str(tmp_path / "rows.jsonl")


def test_a_number_is_one_with_and_without_a_point_before_the_exponent(job: Write, questions: Path) -> None:
    spec = load_job(job(questions, budget={"usd": 1}), ["budget.usd=5e0"])
    assert spec.budget is not None and spec.budget.usd == 5.0
