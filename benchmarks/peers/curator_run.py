"""Bespoke Curator on the bench's rows: `python curator_run.py BASE_URL ROWS OUT IN_FLIGHT RPM` (0: no limit)."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

base_url, rows, out, in_flight, rpm = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:6])
quiet = {"TELEMETRY_ENABLED": "0", "CURATOR_DISABLE_RICH_DISPLAY": "1", "HF_HUB_OFFLINE": "1", "CURATOR_VIEWER": "0"}
os.environ.update(quiet, HF_HOME=str(out / "hf"), OPENAI_API_KEY="none")

# Its token counter fetches an encoding from the net; litellm, which it depends on, brings the file along.
package = importlib.util.find_spec("litellm")
if package is not None and package.origin is not None:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(package.origin).parent / "litellm_core_utils" / "tokenizers")

from bespokelabs import curator  # noqa: E402
from datasets import Dataset  # noqa: E402


class Answer(curator.LLM):  # type: ignore[misc]
    def prompt(self, row: dict[str, Any]) -> str:
        return str(row["input"])

    def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
        return {"id": row["id"], "input": row["input"], "response": response}


limits = {
    "max_concurrent_requests": in_flight, "max_requests_per_minute": rpm or 10**7, "max_tokens_per_minute": 10**10,
}  # fmt: skip
llm = Answer(
    model_name="m", backend="openai", generation_params={"max_tokens": 64},
    backend_params={"base_url": base_url, "api_key": "none", "max_retries": 20, **limits},
)  # fmt: skip
found = llm(Dataset.from_list([json.loads(line) for line in rows.open()]), working_dir=str(out / "cache"))
table = getattr(found, "dataset", found)
table.to_parquet(str(out / "dataset.parquet"))
