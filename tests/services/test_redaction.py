"""No answer that is kept holds the key, in whatever form a server echoes it, and the search harms no answer."""

import html
import json
import urllib.parse
from collections.abc import Callable

import pytest

from schemas.call import VerdictKind
from services.teachers.adapter import decode
from services.teachers.redaction import REDACTED, judged, redacted

PLAIN, ODD = "sk-canary/Zq88+xx/KLMNOP12345", "sk-canary\"pa\\ss<&'KLMNOP12345"


@pytest.mark.parametrize(
    ("key", "escape"),
    [
        (PLAIN, str),
        (PLAIN, lambda key: key.replace("/", "\\/")),
        (PLAIN, lambda key: key.replace("+", "\\u002B")),
        (PLAIN, lambda key: key.replace("/", "\\\\\\/")),
        (PLAIN, lambda key: key.replace("+", "&#43;").replace("/", "&#x2F;")),
        (PLAIN, lambda key: key.replace("+", "&amp;#43;")),
        (PLAIN, lambda key: urllib.parse.quote(key, safe="")),
        (PLAIN, lambda key: urllib.parse.quote(urllib.parse.quote(key, safe=""))),
        (PLAIN, lambda key: key.replace("-", "\\\\-").replace("+", "&plus;")),
        (ODD, lambda key: json.dumps(html.escape(key).replace("&#x27;", "&apos;"))[1:-1]),
        (ODD, lambda key: json.dumps(html.escape(html.escape(key)))[1:-1]),
        (ODD, lambda key: json.dumps(key)[1:-1]),
        (ODD, lambda key: json.dumps(json.dumps(key))[3:-3]),
        (ODD, lambda key: json.dumps(html.escape(key))[1:-1]),
    ],
)
def test_an_answer_that_echoes_the_key_holds_it_in_no_form(key: str, escape: Callable[[str], str]) -> None:
    body = '{"choices": [{"message": {"content": "it is KEY ok"}}]}'.replace("KEY", escape(key))
    kept, _ = judged(200, body.encode(), {}, key.encode())
    assert decode("chat", kept).text == "it is [key] ok"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-be"])
def test_a_wide_body_that_echoes_the_key_does_not_hold_it(encoding: str) -> None:
    kept, _ = judged(200, f'{{"a": "{PLAIN}"}}'.encode(encoding), {}, PLAIN.encode())
    assert json.loads(kept) == {"a": "[key]"}


@pytest.mark.parametrize(
    ("key", "status", "body", "kind"),
    [
        (b"null", 429, b'{"error":{"code":"insufficient_quota","param":null}}', VerdictKind.OUT_OF_MONEY),
        (b"error", 200, b'{"error":{"code":429}}', VerdictKind.RATE_LIMITED),
        (b"x", 400, b'{"error":{"code":"context_length_exceeded"}}', VerdictKind.TOO_LARGE),
    ],
)
def test_a_key_that_is_a_word_says_nothing_about_an_error(
    key: bytes, status: int, body: bytes, kind: VerdictKind
) -> None:
    kept, verdict = judged(status, body, {}, key)
    assert verdict.kind is kind and key not in kept.replace(REDACTED, b"")


def test_a_key_of_many_backslashes_is_found_in_linear_time() -> None:
    key = b"sk-long\\a\\b\\c\\d\\e\\f" + b"\\" * 16 + b"ZZZZZ"
    near = (key[:-1].replace(b"\\", b"\\" * 16) + b"Y ") * 20
    assert redacted(near, key) == near
    assert redacted(json.dumps(json.dumps(key.decode())).encode(), key) == b'"\\"[key]\\""'


def test_an_answer_of_nothing_but_backslashes_is_searched_for_the_key_in_linear_time() -> None:
    body = b"\\u00e9 " + b"\\" * 1_000_000  # quadratic, it would take 20 minutes
    assert redacted(body + b"sk-abcdef+ghijklm", b"sk-abcdef+ghijklm") == body + REDACTED
