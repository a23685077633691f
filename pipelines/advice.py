"""What a user should know of the rows that a run lost: a line for each loss that is no accident."""

from collections.abc import Mapping

from schemas.call import VerdictKind

FINAL = {kind for kind in VerdictKind if kind.retried} | {VerdictKind.BAD_REQUEST}
UNUSABLE = ("unparsable", "schema_mismatch", "empty_answer", "malformed_answer", "truncated", "refused")
NEAR, UNUSED, FAILED = "dropped as near duplicates", "answers cannot be used", "rows have no answer from a teacher"
ABSENT = "its calls went to the others"
OURS = (NEAR, UNUSED, FAILED, ABSENT)


def advice(
    accepted: int, rejected: Mapping[str, int], still_open: int = 0, absent: Mapping[str, str] | None = None
) -> list[str]:
    """Lines for a run that accepted so many rows and rejected others, by reason; of those whose calls failed so many
    are `still_open`. `absent`: teachers that did not work, and why."""
    lines = [f"{name}: {why}; {ABSENT}" for name, why in (absent or {}).items()]
    if (dropped := rejected.get("near_duplicate", 0)) > accepted:
        # Questions of one template are near duplicates by their words: more rows lost than kept is no accident.
        lines.append(
            f"{dropped:,} of {dropped + accepted:,} rows were {NEAR}: where questions share a template, raise "
            "curate.dedup.near.threshold or leave near out; limbeck replay brings them back for nothing"
        )
    unused = {reason: rejected[reason] for reason in UNUSABLE if rejected.get(reason)}
    if (count := sum(unused.values())) > accepted:
        lines.append(
            f"{count:,} {UNUSED} ({_listed(unused)}): rejected/ and report.html show them as they came; limbeck replay "
            "reads them again under changed checks for nothing, limbeck run under a changed prompt asks anew"
        )
    failed = {kind.value: rejected[kind.value] for kind in VerdictKind if kind in FINAL and rejected.get(kind.value)}
    if failed:
        again = f"the same command asks {still_open:,} of them again, " if still_open else ""
        lines.append(f"{sum(failed.values()):,} {FAILED} ({_listed(failed)}): {again}--retry-failed asks all of them")
    return lines


def beyond_the_plan(hidden: int, overlong: int) -> list[str]:
    """Lines for teachers that count `hidden` input tokens, or `overlong` output tokens, more than could be foreseen."""
    paid = "they are paid for, and no plan can foresee them"
    lines = []
    if hidden:
        lines.append(
            "a teacher counts more input tokens than were sent, as for a system prompt that a gateway adds: " + paid
        )
    if overlong:
        lines.append(
            "a teacher counts more output tokens than max_tokens allows, as for thoughts that it does not show: " + paid
        )
    return lines


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
