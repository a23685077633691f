"""Prices that ship with Limbeck, so that a spec for a common model needs none. A spec's own `price` wins.

USD per million tokens of input and output, online, without cache discounts, for prompts below the long-context tiers.
As developers.openai.com/api/docs/pricing and platform.claude.com/docs/en/about-claude/pricing gave them in copies read
on 2026-11-24; models with a price that depends on the prompt's length are left out, so the spec must state theirs.
"""

from schemas.money import Price

READ_ON = "2026-11-24"
PRICES: dict[tuple[str, str], Price] = {
    ("openai", "gpt-4.1"): Price(2.00, 8.00),
    ("openai", "gpt-4.1-mini"): Price(0.40, 1.60),
    ("openai", "gpt-4.1-nano"): Price(0.10, 0.40),
    ("openai", "gpt-4o"): Price(2.50, 10.00),
    ("openai", "gpt-4o-mini"): Price(0.15, 0.60),
    ("openai", "gpt-5"): Price(1.25, 10.00),
    ("openai", "gpt-5-mini"): Price(0.25, 2.00),
    ("openai", "gpt-5-nano"): Price(0.05, 0.40),
    ("openai", "gpt-5.1"): Price(1.25, 10.00),
    ("openai", "gpt-5.2"): Price(1.75, 14.00),
    ("anthropic", "claude-opus-4-5"): Price(5.00, 25.00),
    ("anthropic", "claude-opus-4-6"): Price(5.00, 25.00),
    ("anthropic", "claude-sonnet-4-5"): Price(3.00, 15.00),
    ("anthropic", "claude-sonnet-4-6"): Price(3.00, 15.00),
    ("anthropic", "claude-haiku-4-5"): Price(1.00, 5.00),
}


def listed_price(provider: str, model: str) -> Price | None:
    """The price of a model by its exact name, None where the table does not know it."""
    return PRICES.get((provider, model))
