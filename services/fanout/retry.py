"""When the same call is sent again, and after how long. The only retry policy there is: the SDK's and Ray's are 0."""

from collections import Counter
from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, wait_random_exponential

from schemas.call import Reply, VerdictKind

# Attempts of one call by the kind of its last verdict. A call that may have been paid for gets few; a rate limit says
# nothing about the call, so it gets many (with waits of up to 30 s: about 15 minutes in all).
ATTEMPTS = {
    VerdictKind.RATE_LIMITED: 40,
    VerdictKind.RAMP_LIMITED: 40,
    VerdictKind.OVERLOADED: 10,
    VerdictKind.TRANSIENT: 6,
    VerdictKind.TIMEOUT: 3,
    VerdictKind.IN_DOUBT: 3,
}
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
_backoff = wait_random_exponential(multiplier=FIRST_BACKOFF_S, max=LONGEST_BACKOFF_S)


def _reply(state: RetryCallState) -> Reply:
    assert state.outcome is not None
    reply: Reply = state.outcome.result()
    return reply


class _GiveUp:
    """Counts by kind: forty refusals for rate say nothing about the first error of another sort."""

    def __init__(self) -> None:
        self._seen: Counter[VerdictKind] = Counter()

    def __call__(self, state: RetryCallState) -> bool:
        kind = _reply(state).verdict.kind
        self._seen[kind] += 1
        if kind is VerdictKind.UNREACHABLE:
            return False  # a lane is given up for it (`reach`), not a call
        if _reply(state).is_charged:
            return True  # a response that failed after it was written is on the bill, and so would each repeat be
        return self._seen[kind] >= ATTEMPTS.get(kind, 1)


def _wait(state: RetryCallState) -> float:
    """Full jitter, on top of what the server asks for: its Retry-After is a minimum."""
    return _backoff(state) + (_reply(state).verdict.retry_after or 0.0)


def attempts(rest: Callable[[float], Awaitable[None]]) -> AsyncRetrying:
    """The attempts of one call, with `rest` (seconds) between them; the last reply is the result, whatever it is."""
    return AsyncRetrying(
        sleep=rest,
        retry=retry_if_result(lambda reply: reply.verdict.kind.retried),
        stop=_GiveUp(),
        wait=_wait,
        retry_error_callback=_reply,
    )
