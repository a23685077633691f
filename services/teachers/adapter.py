"""The seam between a worker and a teacher: send a call, get raw bytes and a verdict."""

from typing import Protocol

from schemas.call import Answer, Call, Reply
from schemas.lane import Teacher
from services.teachers import chat, scripted

DECODERS = {"chat": chat.decode, "scripted": chat.decode}


class Adapter(Protocol):
    """What a worker knows of a teacher. `send` never raises for what a teacher or the network does."""

    async def send(self, call: Call) -> Reply: ...

    async def close(self) -> None: ...


def open_adapter(teacher: Teacher, base_url: str | None) -> Adapter:
    """The adapter for a lane. `base_url` is where an embedded teacher listens; otherwise the lane's own.

    Raises `SpecError` where the key reference does not resolve on this machine.
    """
    if teacher.provider == "scripted":
        return scripted.ScriptedAdapter(teacher.name)
    return chat.ChatAdapter(teacher, base_url)


def dialect_of(teacher: Teacher) -> str:
    """The name under which the journal remembers how to read a lane's bodies."""
    return "scripted" if teacher.provider == "scripted" else teacher.api


def decode(dialect: str, body: bytes) -> Answer:
    """The text of a journalled answer."""
    return DECODERS[dialect](body)
