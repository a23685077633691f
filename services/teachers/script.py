"""Text that depends on nothing but a seed: what the scripted and the fake teacher say."""

import json
import random
import re
from typing import Any

WORDS = """amber basin cedar delta ember fjord grove harbour island juniper kettle lantern meadow nickel orchard prairie
    quartz river saddle timber umber valley willow yarrow zephyr anchor bridge copper drift engine feather""".split()
ASKED_ITEMS = re.compile(r"Write (\d+) new")
DEEPEST = 6  # nesting of a made-up JSON value


def sentence(rng: random.Random, low: int = 8, high: int = 16) -> str:
    """`low` to `high` words and a full stop."""
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high))).capitalize() + "."


def answer(
    asked: str, rng: random.Random, schema: dict[str, Any] | None = None, words: tuple[int, int] = (8, 16)
) -> str:
    """A value of `schema` where there is one, `<example>` items where they are asked for, else rationale and label."""
    if schema is not None:
        return json.dumps(value_of(schema, rng))
    if "<example>" in asked:
        found = ASKED_ITEMS.search(asked)
        count = min(int(found.group(1)), 100) if found else rng.randint(3, 5)
        return "\n".join(f"<example>{sentence(rng)}</example>" for _ in range(count))
    return f"{sentence(rng, *words)} So the answer is (a) {rng.choice(WORDS)}."


def value_of(schema: dict[str, Any], rng: random.Random, depth: int = 0) -> Any:
    """A value that fits the common part of JSON schema: objects, arrays, enums, constants and scalars."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    for union in ("anyOf", "oneOf"):
        if schema.get(union):
            return value_of(schema[union][0], rng, depth)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object" and depth < DEEPEST:
        return {name: value_of(part, rng, depth + 1) for name, part in schema.get("properties", {}).items()}
    if kind == "array" and depth < DEEPEST:
        count = max(schema.get("minItems", 1), 1)
        return [value_of(schema.get("items", {}), rng, depth + 1) for _ in range(count)]
    low = schema.get("minimum", 0)
    scalars = {"integer": int(low) + 1, "number": low + 0.5, "boolean": rng.random() < 0.5, "null": None}
    return scalars[kind] if kind in scalars else sentence(rng)
