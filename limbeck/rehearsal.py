"""`limbeck fake-teacher`: from options to a server that prints where it listens and, at its end, its bill."""

import asyncio
import json
import math
import signal
import sys
from typing import Any

from schemas.errors import SpecError
from schemas.money import Price

MOST = {
    "status": 599,
    "spread": 5,
    "stop_after": 30 * 86_400,
    "latency_s": 86_400,
    "hang_s": 86_400,
    "hidden": 1_000_000,
    "seed": 2**63,
}
POSITIVE = ("rpm", "tpm", "input_tpm", "output_tpm", "concurrency", "burst_s", "stop_after")
MOST_WORDS = 1_000_000
MOST_USD = 1_000_000  # per million tokens


def pair(option: str, text: str, kind: type[Any]) -> tuple[Any, Any]:
    """LOW:HIGH as two numbers. `SpecError` where it is not that."""
    low, colon, high = text.partition(":")
    try:
        found = kind(low), kind(high)
    except ValueError:
        found = None
    if not colon or found is None or not all(math.isfinite(n) and n >= 0 for n in found):
        raise SpecError(f"{option}: {text!r} is not two numbers", f"as in {option} 8:16")
    return found


def _check_ranges(options: dict[str, Any]) -> None:
    """`SpecError` for a number that no server could follow."""
    for name, value in options.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        most, least = MOST.get(name, math.inf), 1e-6 if name in POSITIVE else 0
        if not math.isfinite(value) or not least <= value <= most:
            wanted = ("more than 0" if least else "0 or more") + (f", at most {most:,}" if most < math.inf else "")
            raise SpecError(f"--{name.removesuffix('_s').replace('_', '-')}: {value} cannot be", wanted)
    if 0 < options["status"] < 200:
        raise SpecError(f"--status: {options['status']} is no status of an answer", "200 to 599")


def serve_fake_teacher(port: int, stop_after_s: float | None, **options: Any) -> None:
    """Serve until a signal or `stop_after_s` seconds; `SpecError` for an option that cannot be, or a port in use."""
    from services.fake_teacher.faults import parse_faults
    from services.fake_teacher.server import Behaviour, serve

    low, high = pair("--words", options.pop("words"), int)
    thoughts = pair("--thoughts", options.pop("thoughts"), int)
    if thoughts[0] > thoughts[1] or thoughts[1] > MOST_WORDS:
        raise SpecError(f"--thoughts: {thoughts[0]}:{thoughts[1]} is no range", "as in --thoughts 1000:8000")
    if options["charge"] not in ("provider", "actual"):
        raise SpecError(f"--charge: {options['charge']!r}", "known: provider, actual")
    if low > high or not 1 <= high <= MOST_WORDS:
        raise SpecError(f"--words: {low}:{high} is no range", "as in --words 8:16")
    _check_ranges({**options, "stop_after": stop_after_s})
    if not 0 <= port < 65536:
        raise SpecError(f"--port {port}: no port", "0 takes a free one")
    price = Price(*pair("--price", options.pop("price"), float))
    if max(price.input, price.output) > MOST_USD:
        raise SpecError(f"--price: more than {MOST_USD:,} USD per million tokens", "as in --price 0.40:1.60")
    drawn = {name: parse_faults(options.pop(name), f"--{name}") for name in ("faults", "poison")}
    behaviour = Behaviour(words=(low, high), thoughts=thoughts, price=price, **drawn, **options)

    async def main() -> dict[str, Any]:
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        bill = await serve(behaviour, port, _announce, stop_after_s, stopped)
        return bill.shown()

    try:
        shown = asyncio.run(main())
    except OSError as error:
        raise SpecError(f"--port {port}: {error.strerror or error}", "choose another, or 0 for a free one") from None
    shown.pop("seconds")
    print(json.dumps(shown), flush=True)


def _announce(port: int) -> None:
    print(f"http://127.0.0.1:{port}", flush=True)
    print("openai: base_url ends in /v1; anthropic: as printed; the bill is at /bill", file=sys.stderr, flush=True)
