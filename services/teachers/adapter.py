"""The seam between a worker and a teacher: send a call, get raw bytes and a verdict."""

from collections.abc import Callable
from typing import Protocol

from schemas.call import Answer, Call, Reply
from schemas.lane import Teacher
from services.teachers.chat import Chat
from services.teachers.dialect import Dialect
from services.teachers.messages import Messages
from services.teachers.responses import Responses

DIALECTS: dict[str, Callable[[Teacher], Dialect]] = {"chat": Chat, "responses": Responses, "messages": Messages}
DECODERS = {"chat": Chat.decode, "responses": Responses.decode, "messages": Messages.decode}


class Adapter(Protocol):
    """What a worker knows of a teacher. `send` never raises for what a teacher or the network does."""

    async def send(self, call: Call) -> Reply: ...

    async def close(self) -> None: ...


def open_adapter(teacher: Teacher, base_url: str | None = None) -> Adapter:
    """The adapter for a lane. `base_url` is where an embedded teacher listens; otherwise the lane's own.

    Raises `SpecError` where the key reference does not resolve on this machine.
    """
    if teacher.provider == "scripted":
        from services.teachers.scripted import ScriptedAdapter

        return ScriptedAdapter(teacher.name)
    from services.teachers.http import HttpAdapter, anthropic_sdk, openai_sdk

    dialect = DIALECTS[dialect_of(teacher)](teacher)
    sdk = anthropic_sdk if teacher.provider == "anthropic" else openai_sdk
    return HttpAdapter(dialect, sdk(teacher, base_url, dialect.path), teacher.timeout_s)


def dialect_of(teacher: Teacher) -> str:
    """The name under which the journal remembers how to read a lane's bodies."""
    if teacher.provider == "anthropic":
        return Messages.name
    return Chat.name if teacher.provider == "scripted" else teacher.api


def decode(dialect: str, body: bytes) -> Answer:
    """The text of a journalled answer."""
    return DECODERS[dialect](body)
