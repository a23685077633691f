"""What one HTTP answer means, decided by status and error code, never by message text.

Sources: OpenAI error codes guide and help articles 6614457 and 5955604; platform.claude.com errors and rate limits
pages (all read 2026-11-23). A 429 may mean "slow down" or "no money left"; only the code tells. Two messages are read
all the same, `NO_MONEY`: they come without a code of their own.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from schemas.call import RateHint, Verdict, VerdictKind
from schemas.text import printable

OUT_OF_MONEY = {
    "insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded", "organization_usage_limit_exceeded", "billing_hard_limit_reached",
    "billing_error", "enforced_spend_limit_reached", "contract_spend_limit_reached",
}  # fmt: skip
RAMP = {"slow_down", "ramp_limit_exceeded"}
FILTERED = "content_filter"  # of Azure's filter, which bills the prompt that it reads, as its users report
POLICY = {FILTERED, "content_policy_violation", "moderation_blocked", "invalid_prompt"}
# The last is llama.cpp's, as the server in xllamacpp 2026.10 answers a prompt that its context does not hold.
TOO_LONG = {
    "context_length_exceeded", "string_above_max_length", "request_too_large", "exceed_context_size_error",
}  # fmt: skip
AUTH = {"organization_on_hold", "authentication_error", "permission_error", "invalid_api_key"}
# Anthropic's self-set cap and its empty account are an invalid_request_error, like any wrong parameter.
NO_MONEY = ("You have reached your specified API usage limits", "Your credit balance is too low")
LONGEST_WAIT_S = 3_600.0  # a server that asks for more is asked again after this
RateHeaders = Mapping[str, Sequence[tuple[str, str]]]  # our name: the wire's (limit, remaining)
ERROR = re.compile(rb'"error"\s*:\s*[{"]')
STATUS = {
    "rate_limit_error": 429, "rate_limit_exceeded": 429, "overloaded_error": 529, "authentication_error": 401,
    "permission_error": 403, "not_found_error": 404, "request_too_large": 413, "invalid_request_error": 400,
    "timeout_error": 504,
}  # fmt: skip


def error_of(body: bytes) -> dict[str, Any]:
    """The `error` object of a body, or an empty one."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {"message": error} if isinstance(error, str) else {}


def codes_of(error: Mapping[str, Any]) -> list[str]:
    """The error's codes, the most telling first: Anthropic's details.error_code, then `code`, then `type`."""
    details = error.get("details")
    inner = details.get("error_code") if isinstance(details, dict) else None
    return [printable(str(code)) for code in (inner, error.get("code"), error.get("type")) if code]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait. Nonsense counts as absent, and so does a date without the server's own."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return min(seconds, LONGEST_WAIT_S)
    try:
        then, now = (parsedate_to_datetime(headers.get(name, "")) for name in ("retry-after", "date"))
        return min(max(0.0, (then - now).total_seconds()), LONGEST_WAIT_S)
    except (ValueError, TypeError, OverflowError):  # the last for a year or an hour of twenty digits
        return None


def classify(status: int, body: bytes, headers: Mapping[str, str]) -> Verdict:
    """The verdict on a complete HTTP answer."""
    if 200 <= status < 300:
        status = _error_within(body)
        if not status:
            return Verdict(VerdictKind.ANSWERED)
    error = error_of(body)
    codes = codes_of(error)
    # The provider's message may quote the prompt or a masked key, so detail keeps the code alone.
    detail = f"HTTP {status}" + (f" {codes[0][:60]}" if codes else "")
    kind = _kind(status, set(codes))
    if status == 400 and str(error.get("message")).startswith(NO_MONEY):
        kind = VerdictKind.OUT_OF_MONEY
    if status == 403 and body.lstrip().startswith(b"<"):
        kind = VerdictKind.BAD_REQUEST  # a firewall's page is about this prompt; the provider's own 403 is JSON
    return Verdict(kind, detail, retry_after(headers), FILTERED in codes)


def _error_within(body: bytes) -> int:
    """The status of an error that came with status 200 in place of an answer; 0 where there is none."""
    if not ERROR.search(body) or not (error := error_of(body)):
        return 0
    found = json.loads(body)
    if any(found.get(name) for name in ("choices", "content", "output")):
        return 0
    code = error.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        return code
    return next((STATUS[name] for name in codes_of(error) if name in STATUS), 500)


def _kind(status: int, codes: set[str]) -> VerdictKind:
    if status == 402 or codes & OUT_OF_MONEY:
        return VerdictKind.OUT_OF_MONEY
    if codes & POLICY:
        return VerdictKind.REFUSED  # before 403: a gateway's moderation says nothing about the key
    if status in (401, 403) or codes & AUTH:
        return VerdictKind.AUTH
    if 300 <= status < 400 or status in (404, 405):
        return VerdictKind.MISDIRECTED
    if codes & RAMP:
        return VerdictKind.RAMP_LIMITED
    if status == 429:
        return VerdictKind.RATE_LIMITED
    if status in (503, 529):
        return VerdictKind.OVERLOADED
    if status in (408, 504, 524):
        return VerdictKind.TIMEOUT  # a gateway gave up; the teacher behind it may have answered
    if status in (502, 520):
        return VerdictKind.IN_DOUBT  # the teacher behind a gateway said something that it did not understand
    if status in (409, 425) or status >= 500:
        return VerdictKind.TRANSIENT
    return VerdictKind.TOO_LARGE if status == 413 or codes & TOO_LONG else VerdictKind.BAD_REQUEST


def hint_of(headers: Mapping[str, str], names: RateHeaders) -> RateHint | None:
    """Limits in `headers`, of several for one thing (an organisation's and a project's) the smallest. Gateways send -1,
    0 and nonsense where they know nothing: a limit that is not above 0 counts as absent, its `remaining` with it."""
    limits: dict[str, float] = {}
    remaining: dict[str, float] = {}
    for name, wire in names.items():
        for limit_name, remaining_name in wire:
            limit = _number(headers.get(limit_name))
            if limit is None or limit <= 0:
                continue
            limits[name] = min(limit, limits.get(name, limit))
            left = _number(headers.get(remaining_name))
            if left is not None and 0 <= left <= limit:
                remaining[name] = min(left, remaining.get(name, left))
    return RateHint(limits, remaining) if limits else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
