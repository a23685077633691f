"""`limbeck fake-teacher`: from options to a server that prints where it listens and, at its end, its bill."""

import asyncio
import json
import math
import signal
import sys
from typing import Any

from schemas.errors import SpecError
from schemas.money import Price


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


def serve_fake_teacher(port: int, stop_after_s: float | None, **options: Any) -> None:
    """Serve until a signal or `stop_after_s` seconds; `SpecError` for an option that cannot be, or a port in use."""
    from services.fake_teacher.faults import parse_faults
    from services.fake_teacher.server import Behaviour, serve

    low, high = pair("--words", options.pop("words"), int)
    if options["charge"] not in ("provider", "actual"):
        raise SpecError(f"--charge: {options['charge']!r}", "known: provider, actual")
    if low > high or high < 1:
        raise SpecError(f"--words: {low}:{high} is no range", "as in --words 8:16")
    for name, value in options.items():
        limit = name in ("rpm", "tpm", "input_tpm", "output_tpm", "concurrency", "burst_s")
        if isinstance(value, int | float) and (value < 0 or not math.isfinite(value) or (limit and value == 0)):
            raise SpecError(f"--{name.removesuffix('_s').replace('_', '-')}: {value} cannot be", "a positive number")
    if not 0 <= port < 65536:
        raise SpecError(f"--port {port}: no port", "0 takes a free one")
    price = Price(*pair("--price", options.pop("price"), float))
    faults = parse_faults(options.pop("faults"))
    behaviour = Behaviour(words=(low, high), price=price, faults=faults, **options)

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
