"""distilabel on the bench's rows: `python distilabel_run.py BASE_URL ROWS OUT IN_FLIGHT RPM`.

It has no limits of its own; the SDK tries a refused call again.
"""

import json
import os
import sys
from pathlib import Path

base_url, rows, out, in_flight = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=str(out / "hf"), HOME=str(out))

from distilabel.models import OpenAILLM  # noqa: E402
from distilabel.pipeline import Pipeline  # noqa: E402
from distilabel.steps import LoadDataFromDicts  # noqa: E402
from distilabel.steps.tasks import TextGeneration  # noqa: E402

if __name__ == "__main__":
    data = [{"instruction": json.loads(line)["input"]} for line in rows.open()]
    with Pipeline(name="bench") as pipeline:
        source = LoadDataFromDicts(data=data, batch_size=in_flight)
        llm = OpenAILLM(
            model="m", base_url=base_url, api_key="none", generation_kwargs={"max_new_tokens": 64}, max_retries=20
        )
        source >> TextGeneration(llm=llm, input_batch_size=in_flight)
    found = pipeline.run(use_cache=False)
    found["default"]["train"].to_parquet(str(out / "dataset.parquet"))
