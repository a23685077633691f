"""A teacher that answers from the call alone: free, at any speed, the same on every machine. For tests and drills."""

import json
import random

from schemas.call import Call, Reply, Verdict, VerdictKind, call_key
from schemas.money import Usage

WORDS = """amber basin cedar delta ember fjord grove harbour island juniper kettle lantern meadow nickel orchard prairie
    quartz river saddle timber umber valley willow yarrow zephyr anchor bridge copper drift engine feather""".split()


def sentence(rng: random.Random) -> str:
    """Eight to sixteen words and a full stop."""
    return " ".join(rng.choices(WORDS, k=rng.randint(8, 16))).capitalize() + "."


class ScriptedAdapter:
    """Writes `<example>` items where it is asked for them, and otherwise a rationale that ends in an answer."""

    def __init__(self, model: str) -> None:
        self._model = model

    async def send(self, call: Call) -> Reply:
        rng = random.Random(call_key(self._model, call.content()))
        if "<example>" in call.messages[-1].content:
            text = "\n".join(f"<example>{sentence(rng)}</example>" for _ in range(rng.randint(3, 5)))
        else:
            text = f"{sentence(rng)} So the answer is (a) {rng.choice(WORDS)}."
        asked = sum(len(m.content.split()) for m in call.messages)
        usage = {"prompt_tokens": asked, "completion_tokens": len(text.split())}
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice], "usage": usage}).encode()
        return Reply(Verdict(VerdictKind.ANSWERED), 200, body, Usage(asked, usage["completion_tokens"]))

    async def close(self) -> None:
        """Nothing to close."""
