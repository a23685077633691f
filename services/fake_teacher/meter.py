"""What a provider's limiter does: token buckets that refill continuously, and the headers that report them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

Seconds = float


class Charge(NamedTuple):
    """What one request takes from each limit."""

    requests: float = 1.0
    tokens: float = 0.0
    input: float = 0.0
    output: float = 0.0


@dataclass(slots=True)
class Meter:
    """One limit: `per_minute`, held as a bucket of `burst_s` seconds' worth."""

    per_minute: float
    burst_s: Seconds
    level: float = 0.0
    at: Seconds = 0.0

    @property
    def capacity(self) -> float:
        return max(1.0, self.per_minute / 60 * self.burst_s)

    def refill(self, now: Seconds) -> None:
        self.level = min(self.capacity, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now

    def wait(self, amount: float) -> Seconds:
        """Seconds until a request that takes `amount` would pass; a level that is refilled to now is assumed."""
        return max(0.0, (min(amount, self.capacity) - self.level) / (self.per_minute / 60))


class Meters:
    """All limits of one account. A request passes them all or takes from none."""

    def __init__(self, limits: Mapping[str, float | None], burst_s: Seconds, now: Seconds) -> None:
        self.meters = {n: Meter(rate, burst_s, at=now) for n, rate in limits.items() if rate is not None}
        for meter in self.meters.values():
            meter.level = meter.capacity

    def admit(self, charge: Charge, now: Seconds) -> tuple[str, Seconds] | None:
        """None where the request passes, else the limit that it hit and the wait in seconds."""
        worst: tuple[str, Seconds] | None = None
        for name, meter in self.meters.items():
            meter.refill(now)
            wait = meter.wait(getattr(charge, name))
            if wait > 1e-9 and (worst is None or wait > worst[1]):
                worst = name, wait
        if worst is None:
            self.take(charge, now)
        return worst

    def take(self, charge: Charge, now: Seconds) -> None:
        """Charge without asking: tokens that are counted as they are produced. A negative charge gives back."""
        for name, meter in self.meters.items():
            meter.refill(now)
            meter.level = min(meter.capacity, meter.level - getattr(charge, name))


def openai_headers(meters: Meters) -> dict[str, str]:
    """`x-ratelimit-*` as OpenAI's rate limits guide lists them (read 2026-11-23)."""
    headers = {}
    for name in ("requests", "tokens"):
        if meter := meters.meters.get(name):
            headers[f"x-ratelimit-limit-{name}"] = f"{meter.per_minute:.0f}"
            headers[f"x-ratelimit-remaining-{name}"] = f"{max(0.0, meter.level):.0f}"
            missing = (meter.capacity - meter.level) / (meter.per_minute / 60)
            headers[f"x-ratelimit-reset-{name}"] = f"{missing * 1000:.0f}ms"
    return headers


def anthropic_headers(meters: Meters, clock: datetime) -> dict[str, str]:
    """`anthropic-ratelimit-*` as platform.claude.com's rate limits page lists them (read 2026-11-23)."""
    headers = {}
    for name, wire in (("requests", "requests"), ("input", "input-tokens"), ("output", "output-tokens")):
        if meter := meters.meters.get(name):
            reset = clock + timedelta(seconds=(meter.capacity - meter.level) / (meter.per_minute / 60))
            headers[f"anthropic-ratelimit-{wire}-limit"] = f"{meter.per_minute:.0f}"
            headers[f"anthropic-ratelimit-{wire}-remaining"] = f"{max(0.0, meter.level):.0f}"
            headers[f"anthropic-ratelimit-{wire}-reset"] = reset.astimezone(UTC).isoformat()
    return headers
