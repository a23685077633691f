"""What a user should know of the rows that a run lost: a line for each loss that is no accident."""

from collections.abc import Mapping

from schemas.call import VerdictKind
from schemas.manifest import SPENT

FINAL = {kind for kind in VerdictKind if kind.retried} | {VerdictKind.BAD_REQUEST, VerdictKind.MALFORMED}
UNUSABLE = ("unparsable", "schema_mismatch", "empty_answer", "truncated", "refused")
NEAR, UNUSED, FAILED = "dropped as near duplicates", "answers cannot be used", "rows have no answer from a teacher"
GONE = "did not see the run through"
OURS = (NEAR, UNUSED, FAILED)


def advice(accepted: int, rejected: Mapping[str, int], still_open: int = 0) -> list[str]:
    """Lines for a run that accepted so many rows and rejected others, by reason; of those whose calls failed so many
    are `still_open`."""
    lines = []
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


def gone(absent: Mapping[str, str], teachers: int) -> list[str]:
    """A line for each of the teachers that does not work, and why. None where none of them works, or where it is the
    budget: the run then ends with just that."""
    told = {name: why for name, why in absent.items() if why != SPENT}
    return [f"{name} {GONE}: {why}" for name, why in told.items()] if len(told) < teachers else []


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
