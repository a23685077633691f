"""NeMo Data Designer on the bench's rows: `python data_designer_run.py BASE_URL ROWS OUT IN_FLIGHT RPM`.

It has no requests a minute: it adapts the calls in flight to refusals, so RPM is not used.
"""

import os
import sys
from pathlib import Path

base_url, rows, out, in_flight = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
os.environ.update(HF_HUB_OFFLINE="1", NEMO_TELEMETRY_ENABLED="false", DATA_DESIGNER_HOME=str(out / "home"))

import data_designer.config as dd  # noqa: E402
from data_designer.interface import DataDesigner  # noqa: E402

provider = dd.ModelProvider(name="here", endpoint=base_url, provider_type="openai", api_key="none")
settings = dd.ChatCompletionInferenceParams(max_tokens=64, max_parallel_requests=in_flight, timeout=120)
model = dd.ModelConfig(
    alias="teacher", model="m", provider="here", inference_parameters=settings, skip_health_check=True
)
builder = dd.DataDesignerConfigBuilder(model_configs=[model])
builder.with_seed_dataset(dd.LocalFileSeedSource(path=str(rows)))
builder.add_column(dd.LLMTextColumnConfig(name="response", prompt="{{ input }}", model_alias="teacher"))
designer = DataDesigner(artifact_path=out / "artifacts", model_providers=[provider])
with rows.open() as lines:
    count = sum(1 for _ in lines)
designer.create(builder, num_records=count, dataset_name="bench")
