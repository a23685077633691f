"""Turn a key reference into a key, at the last moment and in the process that uses it."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from schemas.errors import SpecError
from schemas.lane import PROVIDERS, Teacher

NO_KEY = "none"  # the SDKs insist on a key; servers of one's own ignore it


def resolve_key(reference: str | None) -> str:
    """The key that `env:NAME` or `file:PATH` points to. The error names the reference, never a value."""
    if reference is None:
        return NO_KEY
    kind, _, where = reference.partition(":")
    if kind == "env":
        value = os.environ.get(where, "")
        if not value.strip():
            raise SpecError(
                f"api_key env:{where}: the variable is not set",
                f"export {where}=... where it is used, which on a cluster is every node before `ray start`",
            )
        return _key(value.strip(), reference)
    try:
        value = Path(os.path.expanduser(where)).read_text().strip()  # noqa: PTH111 - the method raises for an unknown user
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise SpecError(f"api_key file:{where}: {why}", "write the key into that file, mode 0600") from None
    if not value:
        raise SpecError(f"api_key file:{where}: the file is empty", "write the key into that file, mode 0600")
    return _key(value, reference)


def _key(value: str, reference: str) -> str:
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise SpecError(f"api_key {reference}: not one word of printable ASCII", "it holds more than the key")
    return value


def lane_key(teacher: Teacher) -> str:
    """The key of a lane: the provider's usual variable where the lane is the provider itself and names none."""
    if teacher.api_key is None and teacher.base_url is None and teacher.provider in PROVIDERS:
        return resolve_key(PROVIDERS[teacher.provider].api_key)
    return resolve_key(teacher.api_key)


def key_variables(teachers: Sequence[Teacher]) -> list[str]:
    """The environment variables that lanes read their keys from."""
    own = (PROVIDERS[t.provider].api_key if t.base_url is None and t.provider in PROVIDERS else "" for t in teachers)
    references = [t.api_key or usual for t, usual in zip(teachers, own, strict=True)]
    return [name for kind, _, name in (reference.partition(":") for reference in references) if kind == "env"]


def credential_id(teacher: Teacher, base_url: str | None) -> str:
    """Names the account behind a lane without revealing its key: lanes with one id share one set of limits.

    A provider's key is random and long, so half of its SHA-256 can be known to anybody.
    """
    place = re.sub(r"//(localhost|\[::1\])(?=[:/]|$)", "//127.0.0.1", base_url or teacher.base_url or teacher.provider)
    whole = "\0".join((place, lane_key(teacher), teacher.model))
    return hashlib.sha256(whole.encode()).hexdigest()[:32]
