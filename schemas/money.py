"""Money as integers: nano-dollars a call, so that the sum of a run agrees with the provider's bill to the micro-dollar.

A token of a cheap model costs a fraction of a micro-dollar; rounding each call to micro-dollars would put a million
calls half a dollar off. Sums are exact in every process and after every restart.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

NANO = 1_000_000_000  # nano-dollars in a dollar
PICO_A_NANO = 1_000


def nano_usd(usd: float) -> int:
    """Dollars as written in a spec, in nano-dollars."""
    return round(usd * NANO)


def micro_of(nano: int) -> int:
    """Nano-dollars in whole micro-dollars, rounded up."""
    return -(-nano // 1000)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer as the teacher counted them."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


class Amount(NamedTuple):
    """What a budget counts: nano-dollars, tokens (input and output together) and calls."""

    nano_usd: int = 0
    tokens: int = 0
    calls: int = 0

    def plus(self, other: "Amount") -> "Amount":
        return Amount(self.nano_usd + other.nano_usd, self.tokens + other.tokens, self.calls + other.calls)

    def minus(self, other: "Amount") -> "Amount":
        return Amount(self.nano_usd - other.nano_usd, self.tokens - other.tokens, self.calls - other.calls)

    def times(self, factor: float) -> "Amount":
        return Amount(int(self.nano_usd * factor), int(self.tokens * factor), int(self.calls * factor))

    def covers(self, other: "Amount") -> bool:
        return all(mine >= theirs for mine, theirs in zip(self, other, strict=True))


@dataclass(frozen=True)
class Price:
    """USD per million tokens, exact to a millionth of a dollar per million tokens."""

    input: float
    output: float

    @cached_property
    def _pico(self) -> tuple[int, int]:
        """Pico-dollars a token in and out: whole numbers, so that no float error gathers."""
        return round(self.input * 1_000_000), round(self.output * 1_000_000)

    def cost(self, usage: Usage) -> int:
        """Nano-dollars for `usage`, rounded up: the ledger is never below the bill."""
        asked, given = self._pico
        return -(-(usage.input_tokens * asked + usage.output_tokens * given) // PICO_A_NANO)

    @property
    def free(self) -> bool:
        return self.input == 0 and self.output == 0
