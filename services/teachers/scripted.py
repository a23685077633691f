"""A teacher that answers from the call alone: free, at any speed, the same on every machine. For tests and drills."""

import json
import random

from schemas.call import Call, Reply, Verdict, VerdictKind, call_key
from schemas.money import Usage
from services.teachers.script import answer


class ScriptedAdapter:
    """Writes Chat Completions bodies without a server."""

    def __init__(self, model: str) -> None:
        self._model = model

    async def send(self, call: Call) -> Reply:
        rng = random.Random(call_key(self._model, call.content()))
        schema = json.loads(call.schema) if call.schema else None
        text = answer(call.messages[-1].content, rng, schema)
        asked = sum(len(m.content.split()) for m in call.messages)
        # What it makes up has its own length; counted is no more than was allowed, as a limit or a budget reserves it.
        usage = {"prompt_tokens": asked, "completion_tokens": min(len(text.split()), call.sampling.max_tokens)}
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice], "usage": usage}).encode()
        return Reply(Verdict(VerdictKind.ANSWERED), 200, body, Usage(asked, usage["completion_tokens"]))

    async def close(self) -> None:
        """Nothing to close."""
