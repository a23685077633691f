"""Text from a source or a server, made fit for files, terminals and indexes."""

import hashlib


def storable(text: str) -> str:
    """JSON can hold lone surrogates, UTF-8 and parquet cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def printable(text: str) -> str:
    """Without line breaks, lone surrogates and the control characters that a terminal obeys."""
    return "".join(c if c.isprintable() else "?" for c in text)


def hash64(text: str) -> int:
    """64 bits that tell texts apart for as long as a look at the texts themselves settles the rest."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
