"""The Hugging Face Hub: whether it can be reached (its own client tries for a minute), and rows of its datasets."""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from schemas.errors import SpecError

PATIENCE_S = 5.0


def require_hub(what: str) -> None:
    """`SpecError` where the Hub is off or does not answer. Behind a proxy the proxy decides."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise SpecError(f"{what}: no such file, and the Hub is off (HF_HUB_OFFLINE)", "give a path that exists")
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    parts = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=PATIENCE_S).close()
    except (OSError, ValueError) as error:
        hint = "give a path that exists, or an id where the Hub can be reached"
        raise SpecError(f"{what}: no such file, and {parts.hostname} cannot be reached: {error}", hint) from None


def hub_rows(name: str, what: str, load: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """(where, row) of `DATASET[:SPLIT]`, streamed by `load`, which is `datasets.load_dataset`. `SpecError` where it
    cannot be had; `what` says which part of a spec named it."""
    dataset, _, split = name.partition(":")
    require_hub(f"{what} missing: hf:{name}")
    try:
        rows = load(dataset, split=split or "train", streaming=True)
        yield from ((f"{name} row {i}", row) for i, row in enumerate(rows))
    except (FileNotFoundError, ValueError, ConnectionError, OSError) as error:
        line = str(error).strip().splitlines()[0][:200]
        raise SpecError(f"{what} missing: hf:{name}: {line}", "check the name, the split and the network") from None
