"""How much a call can take at most, and whether a lane's limits can ever let it through."""

from typing import NamedTuple

from schemas.call import Call
from schemas.lane import Teacher
from schemas.money import Amount, Price, Usage
from services.ledger.books import Excess
from services.teachers.embedded import SLOT_TOKENS

USUAL, LOOSEST = 4, 5  # bytes a token: in English, and in its plainest
TURN_BYTES = 64  # what a chat template adds to a message, as an upper bound in tokens


NONE = Excess()
WILD = Usage(32_768, 32_768)  # prompts of gateways, and the thoughts that reasoning models are documented to have
SCHEMA_TOKENS = 1024  # of the instructions that a provider adds for tools or a format; some hundreds are usual


class Demand(NamedTuple):
    """The most that one call can take: tokens in and out for the limits, money at a bound that cannot be passed."""

    input_tokens: int
    output_tokens: int
    money: Amount
    ceiling: int = 0  # max_tokens, where output_tokens is what is usual instead
    excess: Excess = Excess()  # beyond text and max_tokens, as the server was seen to count

    def prompt_cost(self, rates: Price) -> Amount:
        """The most that its prompt alone can cost."""
        tokens = self.money.tokens - self.ceiling - self.excess.output
        return Amount(rates.cost(Usage(tokens, 0)), tokens, 1)

    def rate(self, name: str) -> float:
        """What it takes of one limit."""
        if name == "requests":
            return 1.0
        parts = {"tokens": self.input_tokens + self.output_tokens, "input": self.input_tokens}
        return float(parts.get(name, self.output_tokens))


def worst_case(call: Call, rates: Price, excess: Excess = NONE) -> Demand:
    """The most that a call can take at a lane's prices. No tokenizer makes more tokens than a text has bytes; `excess`
    is what the server was seen to count beyond that and beyond max_tokens."""
    size = sum(len(m.content.encode()) + TURN_BYTES for m in call.messages)
    if call.schema is not None:
        size += len(call.schema.encode()) + SCHEMA_TOKENS
    ceiling = call.sampling.max_tokens
    most = Usage(size + excess.input, ceiling + excess.output)
    money = Amount(rates.cost(most), most.input_tokens + most.output_tokens, 1)
    # Rates are kept on an estimate (or what a call was seen to take), money on the bound.
    return Demand(max(size // USUAL + 1, excess.input), ceiling + excess.output, money, ceiling, excess)


def grown(demand: Demand, rates: Price, excess: Excess) -> Demand:
    """The same call's demand once more is known."""
    more = Usage(excess.input - demand.excess.input, excess.output - demand.excess.output)
    return Demand(
        max(demand.input_tokens, excess.input), demand.output_tokens + more.output_tokens,
        demand.money.plus(Amount(rates.cost(more), more.input_tokens + more.output_tokens, 0)), demand.ceiling, excess,
    )  # fmt: skip


def seen(demand: Demand, usage: Usage) -> Excess:
    """What an answer tells of its server's counting, where it is more than was reserved. Of hidden input the whole is
    taken, for nobody knows how much of it was the text."""
    text = demand.money.tokens - demand.ceiling - demand.excess.input - demand.excess.output
    more_in = usage.input_tokens if usage.input_tokens > text + demand.excess.input else 0
    return Excess(more_in, max(0, usage.output_tokens - demand.ceiling))


def wild(teacher: Teacher) -> Amount:
    """What a call may cost at a compatible server that adds prompts and thoughts of its own. The providers themselves
    keep to max_tokens, thoughts and all (their reference pages, read 2026-11-25)."""
    if teacher.base_url is None:
        return Amount()
    return Amount(teacher.rates.cost(WILD), WILD.input_tokens + WILD.output_tokens, 0)


def fits(call: Call, teacher: Teacher) -> bool:
    """Whether each limit of the lane holds the call within a minute, for else it would wait for ever, and an embedded
    teacher's context its text. (What just passes is found by the teacher, and goes to another.)"""
    limits = teacher.limits.rates
    context = most_input(teacher)
    if set(limits) <= {"requests"} and context is None:
        return True
    demand = worst_case(call, teacher.rates)
    held = all(demand.rate(name) <= limit for name, limit in limits.items())
    return held and (context is None or demand.input_tokens <= context)


def most_input(teacher: Teacher) -> float | None:
    """Input tokens, as they are estimated, that a teacher's context may hold; None where nobody knows it."""
    return SLOT_TOKENS * LOOSEST / USUAL if teacher.provider == "embedded" else None


def ceilings(teacher: Teacher) -> list[float]:
    """Tokens that every call of a lane must keep below, of any kind."""
    limits = [limit for name, limit in teacher.limits.rates.items() if name != "requests"]
    context = most_input(teacher)
    return limits if context is None else [*limits, context]
