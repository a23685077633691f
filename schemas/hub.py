"""Whether the Hugging Face Hub can be reached: its own client tries for a minute and prints a dozen lines."""

import os
import socket
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
