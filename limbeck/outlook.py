"""What `limbeck plan` shows."""

from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.estimate import Estimate, Range
from schemas.job import Budget, JobSpec


def ranged(value: Range, form: str = ",.0f", before: str = "") -> str:
    """low to high, once where they are the same."""
    low, high = f"{before}{value.low:{form}}", f"{before}{value.high:{form}}"
    return low if low == high else f"{low} to {high}"


def duration(hours: Range) -> str:
    """Hours, or minutes where they are few."""
    if hours.high >= 1:
        return f"{ranged(hours, ',.2f')} h"
    return f"{ranged(Range(60 * hours.low, 60 * hours.high), '.1f')} min"


def outlook(spec: JobSpec, found: Estimate) -> Table:
    """A line for each lane and one for the whole."""
    rows = f"{found.rows:,} rows" + (f", {found.generated:,} to be written" if found.generated else "")
    rows += f", {found.unusable:,} unusable" if found.unusable else ""
    table = Table("teacher", "calls", "input tokens", "output tokens", "USD", "time", title=f"{spec.name}: {rows}",
                  title_justify="left")  # fmt: skip
    for lane in found.lanes:
        hours = duration(lane.hours) if lane.hours else "no limit named"
        table.add_row(
            Text(lane.teacher), f"{lane.calls:,}", ranged(lane.input_tokens), ranged(lane.output_tokens),
            ranged(lane.usd, ",.4f", "$"), hours,
        )  # fmt: skip
    total, untold = found.hours, [lane.teacher for lane in found.lanes if lane.hours is None and lane.calls]
    time = duration(total) + (f", without {', '.join(untold)}" if untold else "") if total else ""
    table.add_section()
    table.add_row("all", f"{found.calls:,}", "", "", ranged(found.usd, ",.4f", "$"), time)
    lines = budget_lines(spec.budget, found)
    for names, what in (
        (
            found.too_large,
            "rows or calls are too large for every teacher's limits or context and "
            + ("will be rejected" if spec.source.on_error == "reject" else "end the run before its first call"),
        ),
        (found.too_dear, "calls may take more than the whole budget holds and will not be sent"),
    ):
        if names:
            lines.append(f"{len(names):,} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
    table.caption, table.caption_justify = "\n".join(lines) or None, "left"
    return table


def budget_lines(budget: Budget | None, found: Estimate) -> list[str]:
    """A line for each cap of a budget: whether it can, may or cannot hold the job."""
    if budget is None:
        return []
    caps: list[tuple[str, float | None, float, float, str]] = [
        ("usd", budget.usd, found.usd.low, found.reserved_usd, f"${found.reserved_usd:,.4f}"),
        ("tokens", budget.tokens, found.tokens.low, found.reserved_tokens, f"{found.reserved_tokens:,}"),
        ("calls", budget.calls, found.calls, found.calls, ""),
    ]
    return [
        f"budget.{name} {cap:,.10g} {_enough(cap, low, reserved, shown)}"
        for name, cap, low, reserved, shown in caps
        if cap is not None
    ]


def _enough(cap: float, low: float, reserved: float, shown: str) -> str:
    if cap < low:
        return "will stop the run"
    if cap < reserved:
        return f"may stop the run: calls are reserved for at {shown} in all"
    return "covers every call at its reservation" if shown else "covers every call, if none is repeated"


def as_dict(found: Estimate) -> dict[str, Any]:
    """For `--json`."""
    return {**asdict(found), "usd": asdict(found.usd), "hours": asdict(found.hours) if found.hours else None}
