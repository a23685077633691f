"""What `limbeck plan` shows."""

from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.estimate import Estimate, Range
from schemas.job import JobSpec


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
    total = found.hours
    table.add_section()
    table.add_row("all", f"{found.calls:,}", "", "", ranged(found.usd, ",.4f", "$"), duration(total) if total else "")
    budget = spec.budget.usd if spec.budget else None
    if budget is not None:
        enough = "covers every call at its reservation" if budget >= found.reserved_usd else (
            f"may stop the run: calls are reserved for at ${found.reserved_usd:,.4f} in all"
            if budget >= found.usd.low else "will stop the run"
        )  # fmt: skip
        table.caption = f"budget.usd {budget:,.10g} {enough}"
        table.caption_justify = "left"
    lines = [str(table.caption or "")]
    for names, what in (
        (
            found.too_large,
            "rows or calls are too large for every teacher's limits and "
            + ("will be rejected" if spec.source.on_error == "reject" else "end the run before its first call"),
        ),
        (found.too_dear, "calls may cost more than the whole budget and will not be sent"),
    ):
        if names:
            lines.append(f"{len(names):,} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
    table.caption, table.caption_justify = "\n".join(lines).strip() or None, "left"
    return table


def as_dict(found: Estimate) -> dict[str, Any]:
    """For `--json`."""
    return {**asdict(found), "usd": asdict(found.usd), "hours": asdict(found.hours) if found.hours else None}
