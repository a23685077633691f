"""Money as integers: micro-dollars, so that sums are exact in every process and after every restart."""

from dataclasses import dataclass

MICRO = 1_000_000  # micro-dollars in a dollar


def micro_usd(usd: float) -> int:
    """Dollars as written in a spec, in micro-dollars."""
    return round(usd * MICRO)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer as the teacher counted them."""

    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens, which is also micro-dollars a token."""

    input: float
    output: float

    def cost(self, usage: Usage) -> int:
        """Micro-dollars for `usage`, rounded up: the ledger is never below the bill."""
        exact = usage.input_tokens * self.input + usage.output_tokens * self.output
        return -int(-exact // 1)

    @property
    def free(self) -> bool:
        return self.input == 0 and self.output == 0
