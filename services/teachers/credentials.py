"""Turn a key reference into a key, at the last moment and in the process that uses it."""

import os
from pathlib import Path

from schemas.errors import SpecError
from schemas.lane import Teacher

NO_KEY = "none"  # the SDK insists on a key; servers of one's own ignore it


def resolve_key(reference: str | None) -> str:
    """The key that `env:NAME` or `file:PATH` points to. The error names the reference, never a value."""
    if reference is None:
        return NO_KEY
    kind, _, where = reference.partition(":")
    if kind == "env":
        value = os.environ.get(where, "")
        if not value.strip():
            raise SpecError(f"api_key env:{where}: the variable is not set", f"export {where}=... and run again")
        return value.strip()
    try:
        value = Path(where).expanduser().read_text().strip()
    except OSError as error:
        raise SpecError(f"api_key file:{where}: {error.strerror}", "write the key into that file, mode 0600") from None
    if not value:
        raise SpecError(f"api_key file:{where}: the file is empty", "write the key into that file, mode 0600")
    return value


def lane_key(teacher: Teacher) -> str:
    """The key of a lane: `OPENAI_API_KEY` where the lane is OpenAI itself and the spec names none."""
    if teacher.api_key is None and teacher.provider == "openai" and teacher.base_url is None:
        return resolve_key("env:OPENAI_API_KEY")
    return resolve_key(teacher.api_key)
