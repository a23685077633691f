"""Text from a source or a server, made fit for files and terminals."""


def storable(text: str) -> str:
    """JSON can hold lone surrogates, UTF-8 and parquet cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def printable(text: str) -> str:
    """Without line breaks, lone surrogates and the control characters that a terminal obeys."""
    return "".join(c if c.isprintable() else "?" for c in text)
