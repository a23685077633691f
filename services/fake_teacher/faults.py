"""Faults by rate: what can go wrong between a teacher and its caller, one draw a request."""

import random
from collections.abc import Mapping

from schemas.errors import SpecError

BEFORE = {  # answered with an error instead of an answer; nothing is charged
    "429": (429, "rate_limit_exceeded"),
    "500": (500, "server_error"),
    "503": (503, "server_is_overloaded"),
    "529": (529, ""),
    "400": (400, "invalid_value"),
    "slow_down": (429, "slow_down"),
    "quota": (429, "insufficient_quota"),
}
NO_MONEY = 402, ""  # the `quota` of Anthropic: billing_error (errors page, read 2026-11-23)
LOST = ("reset", "truncated", "hang")  # produced and charged, but it does not arrive whole
GARBLED = ("html", "malformed")  # paid answers whose usage cannot be read either
ODD = ("html", "malformed", "refusal", "blank")  # a paid answer that holds no usable text
NAMES = (*BEFORE, *LOST, *ODD)


def parse_faults(text: str, option: str = "--faults") -> dict[str, float]:
    """`500:0.05,hang:0.01` as shares. `SpecError` for a name or a share that cannot be."""
    faults: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, share = part.partition(":")
        if name not in NAMES:
            raise SpecError(f"{option}: unknown fault {name!r}", f"known: {', '.join(NAMES)}, each with a share")
        try:
            faults[name] = float(share)
        except ValueError:
            raise SpecError(f"{option}: {part!r} has no share", "as in 500:0.05,hang:0.01") from None
        if not 0 <= faults[name] <= 1:
            raise SpecError(f"{option}: {part!r}: a share lies between 0 and 1", "as in 500:0.05,hang:0.01")
    if sum(faults.values()) > 1:
        raise SpecError(f"{option}: the shares add up to more than 1", "as in 500:0.05,hang:0.01")
    return faults


def drawn(faults: Mapping[str, float], rng: random.Random) -> str:
    """The fault of one request, '' for none."""
    at = rng.random()
    for name, share in faults.items():
        at -= share
        if at < 0:
            return name
    return ""
