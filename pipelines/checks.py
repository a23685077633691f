"""What makes an answer unusable whatever the pipeline."""

from pipelines.source import Row
from schemas.call import Answer, VerdictKind
from schemas.job import Validation
from schemas.record import Rejection


def unusable(row: Row, answer: Answer, validation: Validation, raw: str) -> Rejection | None:
    """Why no pipeline can use the answer to `row`; None where it may."""
    if answer.text is None:
        reason = "refused" if answer.problem.startswith("refused") else "empty_answer"
        if answer.foreign:
            reason = VerdictKind.MALFORMED.value
        return Rejection(row.id, "answer", reason, answer.problem, raw)
    if validation.finished and answer.finish == "length":
        return Rejection(row.id, "answer", "truncated", "cut off at max_tokens", answer.text)
    return None
