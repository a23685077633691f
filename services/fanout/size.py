"""How much a call can take at most, and whether a lane's limits can ever let it through."""

from typing import NamedTuple

from schemas.call import Call
from schemas.lane import Teacher
from schemas.money import Amount, Price, Usage

TURN_BYTES = 64  # what a chat template adds to a message, as an upper bound in tokens


SCHEMA_TOKENS = 1024  # of the instructions that a provider adds for tools or a format; some hundreds are usual


class Demand(NamedTuple):
    """The most that one call can take: tokens in and out for the limits, money at a bound that cannot be passed."""

    input_tokens: int
    output_tokens: int
    money: Amount
    ceiling: int = 0  # max_tokens, where output_tokens is what is usual instead
    hidden: int = 0  # of the input: what the server counts beyond the text

    def rate(self, name: str) -> float:
        """What it takes of one limit."""
        if name == "requests":
            return 1.0
        parts = {"tokens": self.input_tokens + self.output_tokens, "input": self.input_tokens}
        return float(parts.get(name, self.output_tokens))


def worst_case(call: Call, rates: Price, hidden: int = 0) -> Demand:
    """The most that a call can take at a lane's prices. No tokenizer makes more tokens than a text has bytes; `hidden`
    is what the server was seen to count beyond that, as for a system prompt that a gateway adds."""
    size = sum(len(m.content.encode()) + TURN_BYTES for m in call.messages)
    if call.schema is not None:
        size += len(call.schema.encode()) + SCHEMA_TOKENS
    most = Usage(size + hidden, call.sampling.max_tokens)
    money = Amount(rates.cost(most), most.input_tokens + most.output_tokens, 1)
    # Rates are kept on an estimate (about four bytes a token), money on the bound.
    return Demand(size // 4 + 1 + hidden, call.sampling.max_tokens, money, call.sampling.max_tokens, hidden)


def fits(call: Call, teacher: Teacher) -> bool:
    """Whether each limit of the lane holds the call within a minute; if not, it would wait for ever."""
    limits = teacher.limits.rates
    if set(limits) <= {"requests"}:
        return True
    demand = worst_case(call, teacher.rates)
    return all(demand.rate(name) <= limit for name, limit in limits.items())
