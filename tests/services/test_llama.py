"""Both dialects against a real server: llama.cpp's own, with a real model."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from schemas.call import Call, Message, Reply, Sampling, VerdictKind
from schemas.lane import Teacher
from services.teachers.adapter import decode, dialect_of, open_adapter

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.slow
ASKED = (Message("system", "Answer in one short sentence."), Message("user", "What colour is the sky on a clear day?"))
SCHEMA = {
    "type": "object", "properties": {"colour": {"type": "string"}, "count": {"type": "integer"}},
    "required": ["colour", "count"], "additionalProperties": False,
}  # fmt: skip


SERVE = """
import sys
from schemas.weights import SMOLLM2, gguf_weights
from services.teachers.embedded import LlamaServer
server = LlamaServer(str(gguf_weights(SMOLLM2)), threads=2)
print(server.start().removesuffix("/v1"), flush=True)
sys.stdin.read()  # until the test lets go
"""


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    address = next(line.strip() for line in process.stdout if line.startswith("http"))
    try:
        yield address
    finally:
        process.kill()
        process.wait()


def asked(teacher: Teacher, schema: str | None = None) -> Reply:
    async def send() -> Reply:
        adapter = open_adapter(teacher)
        try:
            return await adapter.send(Call("r", ASKED, Sampling(0.0, 48, 1), schema=schema))
        finally:
            await adapter.close()

    return asyncio.run(send())


def lanes(root: str) -> list[Teacher]:
    fields = {"model": "smollm2", "free": True, "timeout_s": 120}
    return [
        Teacher.model_validate({"provider": "openai", "base_url": f"{root}/v1", **fields}),
        Teacher.model_validate({"provider": "anthropic", "base_url": root, **fields}),
    ]


@pytest.mark.parametrize("lane", [0, 1], ids=["chat", "messages"])
def test_a_real_server_answers_with_text_and_usage(root: str, lane: int) -> None:
    teacher = lanes(root)[lane]
    reply = asked(teacher)
    assert reply.verdict.kind is VerdictKind.ANSWERED, reply
    answer = decode(dialect_of(teacher), reply.body)
    assert answer.text and answer.finish in ("stop", "end_turn", "length")
    assert reply.usage is not None and reply.usage.input_tokens > 10 and 0 < reply.usage.output_tokens <= 48


def test_a_schema_makes_a_real_server_write_json_that_fits(root: str) -> None:
    teacher = lanes(root)[0]
    answer = decode(dialect_of(teacher), asked(teacher, json.dumps(SCHEMA)).body)
    assert answer.text is not None
    assert set(json.loads(answer.text)) == {"colour", "count"}
