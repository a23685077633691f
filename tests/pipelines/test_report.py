"""The figures behind the report's pictures."""

from typing import Any

from pipelines.report import Bar, histogram, openings, spending
from schemas.job import JobSpec
from schemas.manifest import Spend


def job(**more: Any) -> JobSpec:
    scripted = {"provider": "scripted", "model": "s", "free": True}
    body = {"name": "r", "pipeline": "cot", "source": {"path": "q.jsonl"}, "teachers": [scripted], **more}
    return JobSpec.model_validate(body)


def test_a_histogram_counts_every_value_in_bins_of_one_width() -> None:
    bars = histogram([0, 1, 1, 100])
    assert sum(bar.count for bar in bars) == 4 and len(bars) <= 24
    assert bars[0] == Bar("0-4", 3, 1.0) and bars[-1] == Bar("100-104", 1, 1 / 3)
    assert histogram([]) == []


def test_openings_are_counted_without_regard_to_case_and_the_rest_is_one_bar() -> None:
    firsts = ["What is"] * 3 + ["what is"] * 2 + ["Name a"] * 4 + [f"Tell {i}" for i in range(11)]
    bars = openings(firsts)
    assert bars[:2] == [Bar("what is", 5, 0.25), Bar("name a", 4, 0.2)]
    assert bars[-1].label == "3 other ways" and sum(bar.count for bar in bars) == len(firsts)
    assert openings([]) == []


def test_spending_stands_beside_the_budget_and_what_is_in_doubt() -> None:
    spend = Spend(usd=0.5, in_doubt_usd=0.1)
    assert spending(job(budget={"usd": 2.0}), spend) == [
        ("answers", 0.4, 0.2), ("reserved, in doubt", 0.1, 0.05), ("budget", 2.0, 1.0)
    ]  # fmt: skip
    assert spending(job(), Spend()) == []
