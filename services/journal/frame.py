"""The journal's frame: what one append puts on disk, and how a segment is read back after a crash.

    magic "LBJ1" | kind u8 | length u32 | crc32 u32 over kind and payload | payload
    payload = call key (32 bytes) | attempt (16 bytes) | meta length u32 | meta (JSON, UTF-8) | raw body

Notable: a segment has one writer and is never appended to by another, so a torn frame can only stand where that
writer died. Reading resumes at the next frame whose checksum holds, so damage costs the damaged frames alone.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

MAGIC = b"LBJ1"
HEAD = struct.Struct("<4sBII")
META = struct.Struct("<I")
KEY_BYTES, ATTEMPT_BYTES = 32, 16
PREFIX = KEY_BYTES + ATTEMPT_BYTES + META.size


class Kind(IntEnum):
    SENT = 1  # money is reserved and a request is about to leave
    ANSWERED = 2  # a paid answer, raw
    FAILED = 3  # an attempt that brought no answer; its meta says what it may have cost
    SCHEMA = 4  # a JSON schema that calls from here on go out with, as text, or null; a call's key holds it


KINDS = frozenset(int(kind) for kind in Kind)


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    key: bytes
    attempt: bytes
    meta: dict[str, Any]
    body: bytes = b""


def encode(frame: Frame) -> bytes:
    """The bytes of one frame, to be written with one `write`."""
    meta = json.dumps(frame.meta, ensure_ascii=False, separators=(",", ":")).encode()
    payload = b"".join((frame.key, frame.attempt, META.pack(len(meta)), meta, frame.body))
    crc = zlib.crc32(payload, zlib.crc32(bytes([frame.kind])))
    return HEAD.pack(MAGIC, frame.kind, len(payload), crc) + payload


def decode_payload(kind: int, payload: bytes) -> Frame:
    """The frame in a payload whose checksum was verified."""
    (meta_length,) = META.unpack_from(payload, KEY_BYTES + ATTEMPT_BYTES)
    return Frame(
        kind=Kind(kind),
        key=payload[:KEY_BYTES],
        attempt=payload[KEY_BYTES : KEY_BYTES + ATTEMPT_BYTES],
        meta=json.loads(payload[PREFIX : PREFIX + meta_length]),
        body=payload[PREFIX + meta_length :],
    )


def frame_at(data: memoryview, offset: int) -> tuple[int, int, memoryview] | None:
    """(end, kind, payload) of the intact frame that starts at `offset`, else None."""
    if offset + HEAD.size > len(data):
        return None
    magic, kind, length, crc = HEAD.unpack_from(data, offset)
    end = offset + HEAD.size + length
    if magic != MAGIC or kind not in KINDS or length < PREFIX or end > len(data):
        return None
    payload = data[offset + HEAD.size : end]
    if zlib.crc32(payload, zlib.crc32(bytes([kind]))) != crc:
        return None
    return end, kind, payload


def scan(data: memoryview, whole: bytes | Any) -> Iterator[tuple[int, int, memoryview]]:
    """(offset, kind, payload) of every intact frame. `whole` is the same bytes, with a `find`."""
    offset = 0
    while offset < len(data):
        found = frame_at(data, offset)
        if found is None:
            offset = whole.find(MAGIC, offset + 1)
            if offset < 0:
                return
            continue
        end, kind, payload = found
        yield offset, kind, payload
        offset = end
