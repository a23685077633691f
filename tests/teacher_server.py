"""An OpenAI-compatible server on loopback, in a process of its own, with faults on demand and a bill.

    python tests/teacher_server.py PORT_FILE [--latency S] [--faults 500:0.1,reset:0.05] [--status 401]

`GET /bill` counts what it answered: calls, distinct contents, repeated contents, tokens, and when it was first called.
"""

import argparse
import asyncio
import hashlib
import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web


class TeacherServer:
    """Answers questions, and writes `<example>` items where the prompt shows some."""

    def __init__(self, latency: float, faults: dict[str, float], status: int) -> None:
        self.latency, self.faults, self.status = latency, faults, status
        self.rng = random.Random(7)
        self.contents: Counter[str] = Counter()
        self.tokens = {"input": 0, "output": 0}
        self.in_flight = self.peak = self.refused = 0
        self.keys: set[str] = set()
        self.first_at = 0.0

    def draw(self) -> str | None:
        drawn = self.rng.random()
        for name, share in self.faults.items():
            drawn -= share
            if drawn < 0:
                return name
        return None

    @staticmethod
    def text(body: dict[str, Any]) -> str:
        asked = body["messages"][-1]["content"]
        number = int(hashlib.sha256(asked.encode()).hexdigest()[:6], 16)
        if "<example>" in asked:
            wanted = int(found.group(1)) if (found := re.search(r"Write (\d+)", asked)) else 3
            rng = random.Random(f"{number}:{body.get('seed')}")
            return "\n".join(f"<example>Explain topic {rng.randrange(10**9)} now.</example>" for _ in range(wanted))
        return f"Thinking about {number} carefully helps here. So the answer is (a) {number}."

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.first_at = self.first_at or time.time()
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            return await self.answer(request)
        finally:
            self.in_flight -= 1

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.keys.add(request.headers.get("authorization", ""))
        body = await request.json()
        await asyncio.sleep(self.latency)
        fault = self.draw()
        if self.status:
            self.refused += 1
            return web.json_response({"error": {"code": "made_up", "message": "no"}}, status=self.status)
        if fault in ("429", "500", "503"):
            self.refused += 1
            headers = {"retry-after-ms": "50"} if fault == "429" else {}
            return web.json_response({"error": {"code": "busy"}}, status=int(fault), headers=headers)
        text = self.text(body)
        usage = {"prompt_tokens": len(str(body["messages"])) // 4, "completion_tokens": len(text.split())}
        self.contents[hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()] += 1
        self.tokens["input"] += usage["prompt_tokens"]
        self.tokens["output"] += usage["completion_tokens"]
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "html":
            return web.Response(text="<html>login</html>", content_type="text/html")
        if fault == "empty":
            text = "   "
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return web.json_response({"id": "x", "choices": [choice], "usage": usage})

    async def bill(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "calls": sum(self.contents.values()),
                "distinct": len(self.contents),
                "repeated": sum(n - 1 for n in self.contents.values()),
                "refused": self.refused,
                "peak": self.peak,
                "tokens": self.tokens,
                "keys": sorted(self.keys),
                "first_at": self.first_at,
            }
        )


async def serve(port_file: Path, server: TeacherServer) -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_get("/bill", server.bill)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port_file.write_text(str(site._server.sockets[0].getsockname()[1]))
    await asyncio.sleep(900)  # it ends by itself, whatever becomes of the test


class RunningTeacher:
    """The server as a test sees it."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._bill = f"http://127.0.0.1:{port}/bill"

    def bill(self) -> dict[str, Any]:
        with urllib.request.urlopen(self._bill, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


@contextmanager
def teacher_server(folder: Path, *options: str) -> Iterator[RunningTeacher]:
    """Start the server, wait for its port, end it."""
    port_file = folder / f"port-{time.monotonic_ns()}"
    process = subprocess.Popen([sys.executable, __file__, str(port_file), *options])
    try:
        deadline = time.monotonic() + 30
        while not (port_file.exists() and port_file.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, "the teacher server did not start"
            time.sleep(0.02)
        yield RunningTeacher(int(port_file.read_text()))
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port_file", type=Path)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", default="")
    parser.add_argument("--status", type=int, default=0)
    options = parser.parse_args()
    faults = {name: float(share) for name, _, share in (f.partition(":") for f in options.faults.split(",") if f)}
    asyncio.run(serve(options.port_file, TeacherServer(options.latency, faults, options.status)))


if __name__ == "__main__":
    main()
