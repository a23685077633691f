"""What the fake teacher would have charged, call by call: the ground truth that a run's own books are compared with."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from schemas.money import Price, Usage, micro_of


@dataclass(slots=True)
class Bill:
    """Counts answers that were produced, whether or not they arrived."""

    price: Price
    calls: int = 0
    lost: int = 0  # produced and charged, then torn on the wire
    usage: Usage = field(default_factory=Usage)
    untold_usage: Usage = field(default_factory=Usage)  # of answers whose caller cannot read what they used
    contents: Counter[bytes] = field(default_factory=Counter)
    lost_contents: Counter[bytes] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    in_flight: int = 0
    peak: int = 0
    first_at: float = 0.0
    last_at: float = 0.0

    def arrived(self, key: str, now: float) -> None:
        """A request came in. Of its key only a hash is kept."""
        self.first_at = self.first_at or now
        self.last_at = now
        if key:
            self.keys.add(hashlib.sha256(key.encode()).hexdigest()[:16])
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

    def admitted(self, tokens: float, now: float) -> None:
        """A request passed the limits, which charged `tokens` for it."""
        second = self.seconds.setdefault(int(now), [0, 0, 0])
        second[0] += 1
        second[1] += tokens

    def refuse(self, why: str, now: float) -> None:
        self.refused[why] += 1
        self.seconds.setdefault(int(now), [0, 0, 0])[2] += 1

    def charge(self, content: bytes, usage: Usage, lost: bool = False, garbled: bool = False) -> None:
        """An answer was produced; `garbled`: it arrives, but what it used cannot be read from it."""
        self.calls += 1
        self.contents[content] += 1
        self.usage = self.usage + usage
        if lost:
            self.lost += 1
            self.lost_contents[content] += 1
        if lost or garbled:
            self.untold_usage = self.untold_usage + usage

    def shown(self) -> dict[str, Any]:
        """The body of `GET /bill`. `repeated_unexplained` leaves out repeats of answers that were lost,
        `answered_micro_usd` what was charged for answers that did not arrive with their usage."""
        repeated = sum(n - 1 for n in self.contents.values())
        explained = sum(min(n - 1, self.lost_contents[c]) for c, n in self.contents.items())
        nano = self.price.cost(self.usage)
        answered = Usage(
            self.usage.input_tokens - self.untold_usage.input_tokens,
            self.usage.output_tokens - self.untold_usage.output_tokens,
        )
        return {
            "calls": self.calls, "unique": len(self.contents), "repeated": repeated,
            "repeated_unexplained": repeated - explained, "lost": self.lost,
            "input_tokens": self.usage.input_tokens, "output_tokens": self.usage.output_tokens,
            "usd": nano / 1e9, "micro_usd": micro_of(nano), "answered_micro_usd": micro_of(self.price.cost(answered)),
            "refused": dict(self.refused), "refused_total": sum(self.refused.values()),
            "keys": sorted(self.keys), "peak_in_flight": self.peak,
            "first_at": self.first_at, "last_at": self.last_at,
            "seconds": [[second, *counts] for second, counts in sorted(self.seconds.items())],
        }  # fmt: skip
