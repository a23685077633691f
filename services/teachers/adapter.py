"""The seam between a worker and a teacher: send a call, get raw bytes and a verdict."""

from pathlib import Path
from typing import Protocol

from schemas.call import Answer, Call, Reply
from schemas.lane import PROVIDERS, Teacher
from services.admission.charging import Charging
from services.teachers.chat import Chat
from services.teachers.dialect import Dialect
from services.teachers.messages import Messages
from services.teachers.responses import Responses

DIALECTS: dict[str, type[Dialect]] = {dialect.name: dialect for dialect in (Chat, Responses, Messages)}


class Adapter(Protocol):
    """What a worker knows of a teacher. `send` never raises for what a teacher or the network does."""

    async def send(self, call: Call) -> Reply: ...

    async def close(self) -> None: ...


def open_adapter(teacher: Teacher, base_url: str | None = None) -> Adapter:
    """The adapter for a lane. `base_url` is where an embedded teacher listens, or the folder of a recorded one's index;
    otherwise the lane's own.

    Raises `SpecError` where the key reference does not resolve on this machine.
    """
    if teacher.provider == "scripted":
        from services.teachers.scripted import ScriptedAdapter

        return ScriptedAdapter(teacher.name)
    if teacher.provider == "recorded":
        from services.teachers.recorded import RecordedAdapter

        assert base_url is not None
        return RecordedAdapter(Path(base_url))
    from services.teachers.http import HttpAdapter

    dialect = DIALECTS[dialect_of(teacher)]
    return HttpAdapter(dialect(teacher), dialect.sdk(teacher, base_url), teacher.timeout_s)


def dialect_of(teacher: Teacher) -> str:
    """The name under which the journal remembers how to read a lane's bodies."""
    own = PROVIDERS.get(teacher.provider)
    return Chat.name if own is None else teacher.api if teacher.api in own.dialects else own.dialects[0]


def charging_of(teacher: Teacher) -> Charging:
    """How a provider counts tokens against a limit; of other servers it is learned, from a guess in the middle. A
    teacher inside Limbeck has no limits but the spec's, on what is used."""
    if teacher.provider not in PROVIDERS:
        return Charging.LIVE
    return Charging.REFUND if teacher.base_url is not None else DIALECTS[dialect_of(teacher)].charging


def decode(dialect: str, body: bytes) -> Answer:
    """The text of a journalled answer."""
    return DIALECTS[dialect].decode(body)
