"""A real instruct model on this machine: llama.cpp's own server, from the `xllamacpp` wheel, inside a Ray actor.

The server speaks Chat Completions on loopback and is called through the same adapter as any other one.
"""

import importlib.util
from pathlib import Path
from typing import Any

from schemas.errors import SpecError

SLOTS = 8  # sequences decoded together; 98 tokens/s on two cores with 8, against 31 with 1 (SmolLM2-135M, Q4_1)
SLOT_TOKENS = 2048  # context of one slot


def require_server() -> None:
    """`SpecError` where llama.cpp is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise SpecError("the embedded teacher needs the package xllamacpp", "pip install -c constraints.txt xllamacpp")


class LlamaServer:
    """The server's life. As an actor it holds the cores that Ray assigned it, and dies with the run."""

    def __init__(self, weights: str, threads: int) -> None:
        self._weights, self._threads = Path(weights), threads
        self._server: Any = None

    def is_placed(self) -> bool:
        """True, once the actor has its cores."""
        return True

    def start(self) -> str:
        """Load the model and serve it; the base URL. `SpecError` where llama.cpp cannot load it."""
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self._weights)
        params.model_alias = {self._weights.stem}  # every answer names the model; without this, by its path
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.n_parallel = SLOTS
        params.n_ctx = SLOTS * SLOT_TOKENS
        for cores in (params.cpuparams, params.cpuparams_batch):
            cores.n_threads = self._threads
            # Spinning threads fell from 67 to 7 tokens/s with every core also busy; polling 0 keeps 98.
            cores.poll = 0
        try:
            self._server = xllamacpp.Server(params)  # returns when the model is loaded and the port is open
        except RuntimeError:
            problem = f"llama.cpp cannot load {self._weights.name}"
            raise SpecError(problem, "is it a whole .gguf file of a chat model?") from None
        return f"{self._server.listening_address}/v1"

    def address(self) -> tuple[str, str]:
        """(base URL, hex id of the node), once it serves: it listens on that node's loopback."""
        import ray

        return self.start(), str(ray.get_runtime_context().get_node_id())
