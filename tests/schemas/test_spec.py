"""The job spec as a user meets it: what is accepted, and the one line that says what is not."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.errors import SpecError
from schemas.explain import spec_error
from schemas.job import JobSpec, fixed_part, models_gone, revisable_part

WHOLE: dict[str, Any] = {
    "name": "cqa-rationales",
    "pipeline": "cot",
    "source": {
        "path": "cqa.jsonl.gz", "on_error": "fail", "fields": {"id": "id", "input": "q", "label": "a", "choices": "c"},
    },
    "teachers": [
        {
            "provider": "openai", "api": "chat", "model": "gpt-4.1-mini", "base_url": None,
            "api_key": "env:OPENAI_API_KEY",
            "limits": {"rpm": 500, "tpm": 200000, "input_tpm": None, "output_tpm": None, "concurrency": None},
            "price": {"input": 0.40, "output": 1.60}, "lane": "online", "timeout_s": 120,
        }
    ],
    "sampling": {"temperature": 0.7, "max_tokens": 256, "n": 1, "seed": 0},
    "cascade": None,
    "prompt": {"style": "few-shot", "exemplars": "exemplars.jsonl", "system": None},
    "validate": {},
    "curate": {"dedup": {"exact": True, "near": {"threshold": 0.7}}, "decontaminate": None, "filters": []},
    "budget": {"usd": 5.00},
    "faithful": False,
    "publish": {"format": ["parquet", "messages"], "push_to_hub": None},
    "train": None,
    "evaluate": None,
}  # fmt: skip


def problem(**changes: Any) -> SpecError:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({**WHOLE, **changes})
    return spec_error(JobSpec, caught.value)


def test_the_whole_documented_spec_is_accepted() -> None:
    spec = JobSpec.model_validate(WHOLE)
    assert spec.teachers[0].name == "openai/gpt-4.1-mini"


def test_four_keys_are_enough_and_everything_is_off_by_default() -> None:
    spec = JobSpec.model_validate({k: WHOLE[k] for k in ("name", "pipeline", "source", "teachers")})
    assert spec.curate.dedup is None
    assert spec.prompt.style == "zero-shot"
    assert spec.prompt.task == "free_text"
    assert spec.train is None and spec.budget is None


@pytest.mark.parametrize("off", [None, False])
def test_null_or_false_turns_a_curation_step_off(off: Any) -> None:
    assert JobSpec.model_validate({**WHOLE, "curate": {"dedup": off}}).curate.dedup is None
    near = JobSpec.model_validate({**WHOLE, "curate": {"dedup": {"exact": True, "near": off}}}).curate.dedup
    assert near is not None and near.near is None


@pytest.mark.parametrize(
    ("changes", "line", "hint"),
    [
        ({"sampling": {"temprature": 1}}, "unknown key sampling.temprature = 1", "'temperature'"),
        ({"publsh": {}}, "unknown key publsh", "'publish'"),
        ({"source": {"path": "x", "fields": {"inptu": "q"}}}, "unknown key source.fields.inptu = 'inptu'", "'input'"),
        ({"train": {"student": {"form": "m", "layers": 2}}}, "unknown key train.student.form = 'm'", "'from'"),
        ({"budget": {"usd": "much"}}, "budget.usd: 'much'", "schema"),
        ({"teachers": []}, "teachers", "schema"),
        ({"pipeline": "icl", "icl": {"k": 4}}, "pipeline 'icl' is not built yet", "schema"),
        ({"teachers": [{"provider": "recorded"}]}, "provider recorded and path: FILE or RUN go together", "schema"),
        ({"train": {"student": "m", "objective": {"name": "kd"}}}, "objective 'kd' learns from a teacher", "schema"),
        ({"train": {"student": "m", "objective": {"name": "gdk"}}}, "'gdk' is not known; do you mean gkd?", "schema"),
        ({"train": {"student": "m", "objective": {"name": "kd", "alpa": 1}}}, "train.objective.alpa = 1", "'alpha'"),
        ({"sampling": {"max_tokens": True}}, "sampling.max_tokens: True", "schema"),
        ({"sampling": {"max_tokens": "80"}}, "sampling.max_tokens: '80'", "schema"),
        ({"source": {"path": "hf:"}}, "names no dataset", "schema"),
        ({"faithful": True, "curate": {"dedup": {}}}, "faithful: true keeps duplicates", "schema"),
    ],
)
def test_the_error_names_the_key_the_value_and_the_nearest_known_key(
    changes: dict[str, Any], line: str, hint: str
) -> None:
    error = problem(**changes)
    assert line in error.message
    assert hint in error.hint


def test_a_key_in_the_spec_is_refused_and_not_repeated() -> None:
    error = problem(teachers=[{"provider": "openai", "model": "m", "free": True, "api_key": "sk-canary-123"}])
    assert "teachers[0].api_key" in error.message
    assert "canary" not in error.message + error.hint


def test_an_unknown_price_is_refused() -> None:
    assert "price of 'm' is unknown" in problem(teachers=[{"provider": "openai", "model": "m"}]).message


@pytest.mark.parametrize("url", ["http://example.com/v1", "https://me:pw@example.com/v1", "ftp://example.com"])
def test_an_address_that_would_leak_is_refused(url: str) -> None:
    assert "base_url" in problem(teachers=[{"provider": "openai", "model": "m", "free": True, "base_url": url}]).message


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "http://localhost:1/v1", "http://[::1]:2/v1"])
def test_plain_http_is_allowed_on_loopback(url: str) -> None:
    lane = {"provider": "openai", "model": "m", "free": True, "base_url": url}
    assert JobSpec.model_validate({**WHOLE, "teachers": [lane]}).teachers[0].base_url == url


def test_budget_and_prompt_may_change_between_two_starts_and_the_sampling_may_not() -> None:
    spec = JobSpec.model_validate(WHOLE)
    richer = JobSpec.model_validate({**WHOLE, "budget": {"usd": 50}})
    revised = JobSpec.model_validate({**WHOLE, "validate": {"finished": True}})
    other = JobSpec.model_validate({**WHOLE, "sampling": {"temperature": 0}})
    assert fixed_part(spec) == fixed_part(richer) == fixed_part(revised)
    assert fixed_part(spec) != fixed_part(other)
    assert revisable_part(spec) == revisable_part(richer) != revisable_part(revised)


def test_accounts_come_and_go_and_models_are_told_apart() -> None:
    lane = {"provider": "openai", "model": "m", "free": True}
    one = JobSpec.model_validate({**WHOLE, "teachers": [lane]})
    two_keys = JobSpec.model_validate({**WHOLE, "teachers": [{**lane, "api_key": "env:B"}, lane]})
    another = JobSpec.model_validate({**WHOLE, "teachers": [{**lane, "model": "n"}, lane]})
    assert fixed_part(one) == fixed_part(two_keys)
    assert not models_gone(one, another) and models_gone(another, one) == {"openai/n"}


@pytest.mark.parametrize(
    "lane",
    [
        {"apikey": "sk-canary-1"}, {"openai_api_key": "sk-canary-1"}, {"api_key": "sk-canary-1"},
        {"base_url": "https://u:sk-canary-1@host/v1"}, {"modle": "sk-canary-1"},
        {"api_key": "env:sk-canary-1"}, {"base_url": "https://host/v1;sk-canary-1"},
    ],
)  # fmt: skip
def test_a_key_in_the_wrong_place_is_not_repeated(lane: dict[str, Any]) -> None:
    error = problem(teachers=[{"provider": "openai", "model": "m", "free": True, **lane}])
    assert "canary" not in error.message + error.hint


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:abc/v1", "http://127.0.0.1:99999/v1", "http://127.999.1.1/v1", "https://a b/v1",
     "https://host/v1?x=1", "https://host/v1\n", "https:///v1", "http://[::1/v1"],
)  # fmt: skip
def test_a_base_url_that_cannot_be_one_is_refused(url: str) -> None:
    assert "base_url" in problem(teachers=[{"provider": "openai", "model": "m", "free": True, "base_url": url}]).message


def test_an_evaluation_needs_a_student() -> None:
    assert "evaluate has no student" in problem(evaluate={"rows": 5}).message
    named = JobSpec.model_validate({**WHOLE, "evaluate": {"students": ["a/student", "b/student"]}})
    assert named.evaluate is not None and named.evaluate.students == {
        "a/student": "a/student",
        "b/student": "b/student",
    }


def test_a_job_s_evaluation_is_of_its_own_student_on_its_own_rows() -> None:
    train = {"student": {"scratch": {}}, "objective": {"name": "step_by_step", "alpha": 0.3}}
    spec = JobSpec.model_validate({**WHOLE, "train": train, "evaluate": {"students": {"other": "o"}, "rows": 7}})
    assert spec.evaluate is not None and spec.train is not None
    whole = spec.evaluate.of("run/student", "run", spec.train.objective)
    assert whole.students == {"student": "run/student", "other": "o"} and whole.rows == 7
    assert whole.data.run == "run" and whole.objective == spec.train.objective
