"""What one HTTP answer means, decided by status and error code, never by message text.

Sources: OpenAI error codes guide and help articles 6614457 and 5955604 (read 2026-11-23). A 429 may mean "slow
down" or "no money left"; only the code tells.
"""

import json
from collections.abc import Mapping
from typing import Any

from schemas.call import Verdict, VerdictKind

OUT_OF_MONEY = {
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "billing_hard_limit_reached",
}
LONGEST_WAIT_S = 120.0  # a server that asks for more is asked again after this


def error_of(body: bytes) -> dict[str, Any]:
    """The `error` object of a body, or an empty one."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {"message": error} if isinstance(error, str) else {}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait. Dates and nonsense count as absent."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return min(seconds, LONGEST_WAIT_S)
    return None


def classify(status: int, body: bytes, headers: Mapping[str, str]) -> Verdict:
    """The verdict on a complete HTTP answer."""
    if 200 <= status < 300:
        return Verdict(VerdictKind.ANSWERED)
    error = error_of(body)
    code = str(error.get("code") or error.get("type") or "")
    # The provider's message may quote the prompt or a masked key, so detail keeps the code alone.
    detail = f"HTTP {status}" + (f" {code[:60]}" if code else "")
    wait = retry_after(headers)
    if status in (401, 403):
        return Verdict(VerdictKind.AUTH, detail)
    if status == 402 or str(error.get("code")) in OUT_OF_MONEY or str(error.get("type")) in OUT_OF_MONEY:
        return Verdict(VerdictKind.OUT_OF_MONEY, detail)
    if 300 <= status < 400 or status in (404, 405):
        return Verdict(VerdictKind.MISDIRECTED, detail)
    if status == 429:
        return Verdict(VerdictKind.RATE_LIMITED, detail, wait)
    if status in (408, 409) or status >= 500:
        return Verdict(VerdictKind.TRANSIENT, detail, wait)
    return Verdict(VerdictKind.BAD_REQUEST, detail)
