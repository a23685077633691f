"""Canonical forms for comparing texts. Hashes are blake2b, the same in every process and version."""

import hashlib
import itertools
import re
import unicodedata

WORD = re.compile(r"\w+")


def canonical(text: str) -> str:
    """NFKC, case folded, white space collapsed. Punctuation stays: `3 + 5` and `3 - 5` are different questions."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def digest(text: str) -> bytes:
    """16 bytes that stand for a canonical text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def bigrams(text: str) -> frozenset[str]:
    """The set of word bigrams of a text; of a single word, the word itself."""
    words = WORD.findall(canonical(text))
    if len(words) < 2:
        return frozenset(words)
    return frozenset(f"{a} {b}" for a, b in itertools.pairwise(words))
