"""One request to a teacher and what came of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from schemas.money import Usage


class Message(NamedTuple):
    role: Literal["system", "user", "assistant"]
    content: str


class Sampling(NamedTuple):
    """Decoding settings that are sent with a call."""

    temperature: float | None = 0.7
    max_tokens: int = 256
    seed: int | None = 0


class Call(NamedTuple):
    """A request before a lane is chosen for it. A tuple, for millions of them go from the feed to workers: 5.6 us to
    pickle and read back, 15 us as a dataclass.

    `row` names the row it is for and is no part of the key: two rows with the same messages share one answer. `own` is,
    where each row has an answer of its own whatever is asked, as of recorded teachers.
    """

    row: str
    messages: tuple[Message, ...]
    sampling: Sampling
    sample: int = 0
    schema: str | None = None  # JSON schema that the answer shall fit, as compact JSON text
    own: str = ""

    def content(self) -> bytes:
        """SHA-256 (32 bytes) of everything but the model that decides the answer."""
        body: list[Any] = [
            self.messages,
            self.sampling.temperature,
            self.sampling.max_tokens,
            self.sampling.seed,
            self.sample,
        ]
        if self.schema is not None or self.own:
            body.append(self.schema)
        if self.own:
            body.append(self.own)
        return hashlib.sha256(json.dumps(body, ensure_ascii=True, separators=(",", ":")).encode()).digest()


def call_key(model: str, content: bytes) -> bytes:
    """The call key (32 bytes): `content` of a call together with the lane's model."""
    return hashlib.sha256(model.encode() + b"\0" + content).digest()


class VerdictKind(StrEnum):
    """What came of one attempt, and so what to do. Values are stored in the journal and are reason codes."""

    ANSWERED = "answered"
    RATE_LIMITED = "rate_limited"  # over a limit of the account: slower, and again
    RAMP_LIMITED = "ramp_limited"  # under the limits, but traffic rose too fast: hold the rate, and again
    OVERLOADED = "overloaded"  # the teacher's trouble, not the account's: again, no slower
    TRANSIENT = "transient"
    TIMEOUT = "timeout"  # no answer within timeout_s; it may have been produced and paid for
    IN_DOUBT = "in_doubt"  # the connection broke after the request left; likewise
    UNREACHABLE = "unreachable"  # the request never left
    MALFORMED = "malformed_answer"  # status 200, and nothing of the dialect in the body; it may be paid for
    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"  # beyond what the lane takes in one request
    NOT_RECORDED = "not_recorded"  # by a recorded teacher: it has no answer to the row
    REFUSED = "refused"  # by the provider's policy, before an answer
    AUTH = "auth"
    OUT_OF_MONEY = "out_of_money"
    MISDIRECTED = "misdirected"  # no such path or model there, or a redirect, which is not followed

    @property
    def closes_lane(self) -> bool:
        """Whether no other call of this lane can succeed either."""
        return self in CLOSING

    @property
    def retried(self) -> bool:
        """Whether the same call may be sent again."""
        return self in RETRIED

    @property
    def may_be_paid(self) -> bool:
        """Whether an attempt without an answer may be on the bill all the same."""
        return self in (VerdictKind.TIMEOUT, VerdictKind.IN_DOUBT, VerdictKind.MALFORMED)


CLOSING = frozenset({VerdictKind.AUTH, VerdictKind.OUT_OF_MONEY, VerdictKind.MISDIRECTED})
RETRIED = frozenset(
    {
        VerdictKind.RATE_LIMITED,
        VerdictKind.RAMP_LIMITED,
        VerdictKind.OVERLOADED,
        VerdictKind.TRANSIENT,
        VerdictKind.TIMEOUT,
        VerdictKind.IN_DOUBT,
        VerdictKind.UNREACHABLE,
    }
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The kind, a line of detail without request or key, the wait in seconds that the server asked for, and whether a
    failure may cost what its prompt costs."""

    kind: VerdictKind
    detail: str = ""
    retry_after: float | None = None
    read_prompt: bool = False


@dataclass(frozen=True, slots=True)
class RateHint:
    """What a server's headers say of its limits, by `requests`, `tokens`, `input`, `output`: a minute's worth, and
    what was left of it. Untrusted: it may slow a lane down, never speed it up."""

    limits: Mapping[str, float]
    remaining: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a lane gave back for one attempt: raw bytes first, then what was read from them."""

    verdict: Verdict
    status: int = 0
    body: bytes = b""
    usage: Usage | None = None
    hint: RateHint | None = None

    @property
    def is_charged(self) -> bool:
        """Whether it says that it cost something, as an error may, too."""
        return self.usage is not None and self.usage != Usage()


@dataclass(frozen=True, slots=True)
class Answer:
    """The text of a paid answer, decoded from its raw body.

    `text` is None where the body is not what the dialect promises; `problem` then says how. `foreign`: it is nothing of
    the dialect at all, as a login page is.
    """

    text: str | None
    finish: str = ""
    problem: str = ""
    foreign: bool = False


def chat(*turns: tuple[Literal["system", "user", "assistant"], str]) -> tuple[Message, ...]:
    """Messages from (role, content) pairs."""
    return tuple(Message(role, content) for role, content in turns)


def wire_messages(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """Messages as both chat dialects and the published conversational form write them."""
    return [{"role": m.role, "content": m.content} for m in messages]
