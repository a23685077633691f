"""What a provider's own package knows of its service: where a call goes, and with which headers."""

import os
from typing import Any, NamedTuple

from services.teachers.credentials import NO_KEY


class Sdk(NamedTuple):
    """What a package gave: the address to post to, and the headers of every call; the key, to be found in answers."""

    url: str
    headers: dict[str, str]
    key: bytes


def taken_from(client: Any, path: str, key: str, **extra: str) -> Sdk:
    """Take a package's client for what it knows, and close it: its connections are never used."""
    made = {**client.default_headers, **client.auth_headers, **extra, "content-type": "application/json",
            "accept-encoding": "identity"}  # fmt: skip
    headers = {name: value for name, value in made.items() if isinstance(value, str)}
    url = str(client.base_url).rstrip("/") + path
    client.close()
    return Sdk(url, headers, b"" if key == NO_KEY else key.encode())


def forget_environment(*names: str) -> None:
    """Variables that a package would turn into headers, and that a server has no business to see."""
    for name in names:
        os.environ.pop(name, None)
