"""The key of a lane in what its server says: found in every form that a writer gives it, and taken out."""

import dataclasses
import functools
import html.entities
import re
from collections.abc import Mapping

from schemas.call import Verdict, VerdictKind
from services.teachers.verdict import classify

REDACTED = b"[key]"
# A writer that escapes letters and digits, too; \u00e9, which many make of an accent, is no sign of one.
ALL_ESCAPED = re.compile(rb"\\u00[2-7]")
WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")  # which JSON readers tell by their zeros
SECRET_BYTES = 12  # a shorter key is a word that stands for none (`test`, `EMPTY`) and may be one of an answer


def redacted(body: bytes, key: bytes) -> bytes:
    """A body without the key: a debug page or a gateway that echoes the request may hold it, as it is or as writers of
    JSON, HTML and addresses escape it (PHP's \\/, .NET's \\u002B, Go's &#43;, %2B; a quote is escaped by all of them).
    In linear time: a model that loops may write a hundred thousand backslashes."""
    body = body.replace(key, REDACTED)
    if b"\0" in body:
        for encoding in WIDE:
            body = body.replace(key.decode("latin-1").encode(encoding), REDACTED.decode().encode(encoding))
    pattern, telling = escaped(key)
    may_hold = telling in body or b"&#" in body or (b"\\u00" in body and ALL_ESCAPED.search(body))
    return pattern.sub(REDACTED, body) if may_hold else body


def judged(status: int, body: bytes, headers: Mapping[str, str], key: bytes) -> tuple[bytes, Verdict]:
    """(the body without the key, the verdict on it without the key: an error's code may quote it, too). A key that is a
    word stays in an answer, and says nothing about an error."""
    if len(key) >= SECRET_BYTES:
        body = redacted(body, key)
    verdict = classify(status, body, headers)
    if verdict.kind is VerdictKind.ANSWERED or not 0 < len(key) < SECRET_BYTES:
        return body, verdict
    return redacted(body, key), dataclasses.replace(verdict, detail=redacted(verdict.detail.encode(), key).decode())


@functools.lru_cache(16)
def escaped(key: bytes) -> tuple[re.Pattern[bytes], bytes]:
    """(the key with any of its characters escaped, once or again as JSON within JSON is; its longest part that few
    writers escape). Runs of backslashes are taken whole and never given back, so that no two parts contend for them."""
    parts = re.findall(rb"\\+|[^\\]", key, re.DOTALL)
    whole = re.compile(b"".join(_backslashes(len(p)) if p[:1] == b"\\" else _forms(p[0]) for p in parts))
    return whole, max(re.findall(rb"[A-Za-z0-9]*", key), key=len)


def _backslashes(count: int) -> bytes:
    return rb"(?:\\{%d,%d}+|(?:\\{1,15}+u005[cC]){%d})" % (count, 16 * count, count)


def _forms(c: int) -> bytes:
    names = b"|".join(sorted(name.rstrip(";").encode() for name, text in html.entities.html5.items() if text == chr(c)))
    in_html = rb"&(?:amp;){0,4}(?:#0{0,4}%d|#[xX]0{0,4}(?i:%x)%b);?" % (c, c, b"|" + names if names else b"")
    return rb"(?:\\{0,15}+(?:%b|u00(?i:%02x)|x(?i:%02x))|%%(?:25){0,4}(?i:%02x)|%b)" % (
        re.escape(bytes([c])), c, c, c, in_html,
    )  # fmt: skip
