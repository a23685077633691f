"""The dataset card: Hugging Face front matter, what made the rows, and the teacher's terms."""

import yaml

from schemas.job import JobSpec
from schemas.lane import Teacher
from schemas.manifest import Manifest

# Read 2026-10-05; not legal advice. They warn; whether to train on the answers is the user's decision.
TERMS = {
    "api.openai.com": "OpenAI Services Agreement 3.3(e): output may not be used to develop competing models.",
    "smollm2-135m": "SmolLM2-135M-Instruct is under Apache-2.0, which allows training on its output.",
}
UNKNOWN_TERMS = "The terms of this teacher are not known to Limbeck: check that they allow training on its output."
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def terms_of(teacher: Teacher) -> str:
    """What the teacher's terms say on training, as far as it is known."""
    if teacher.provider == "scripted":
        return "Scripted answers: made by a program, free of terms, and of meaning."
    if teacher.provider == "openai" and teacher.base_url is None:
        return TERMS["api.openai.com"]
    return TERMS.get(teacher.model, UNKNOWN_TERMS)


def card(spec: JobSpec, manifest: Manifest) -> str:
    """The README.md of a run."""
    rows = manifest.dataset.rows
    front = {
        "pretty_name": spec.name,
        "task_categories": ["text-generation" if spec.pipeline == "instruct" else "question-answering"],
        "tags": ["limbeck", "synthetic", "distillation", spec.pipeline],
        "size_categories": [next((name for limit, name in SIZES if rows < limit), "n>1M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "dataset/*.parquet"}]}],
    }
    rejected = "".join(f"| {reason} | {count:,} |\n" for reason, count in sorted(manifest.rows.rejected.items()))
    teachers = "".join(f"- `{t.name}`. {terms_of(t)}\n" for t in spec.teachers)
    prices = "nothing" if all(t.rates.free for t in spec.teachers) else f"${manifest.spend.usd:.4f}"
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {spec.name}\n\n"
        f"{rows:,} rows made by the `{spec.pipeline}` pipeline of Limbeck from {manifest.rows.source:,} source rows.\n"
        f"The whole spec is in `job.yaml`, the counts in `manifest.json`, the pictures in `report.html`.\n\n"
        f"```python\nimport datasets\nrows = datasets.load_dataset('parquet', data_dir='dataset')['train']\n```\n\n"
        f"## Teachers\n\n{teachers}\nThe answers cost {prices} "
        f"({manifest.spend.input_tokens:,} tokens in, {manifest.spend.output_tokens:,} out).\n\n"
        f"## Rejected rows\n\n| reason | rows |\n| --- | --- |\n{rejected or '| none | 0 |' + chr(10)}\n"
        f"Each stands in `rejected/` with its raw answer.\n\n"
        f"## Limits\n\nThe text was written by a language model and was not checked by a person. "
        f"SHA-256 of the rows: `{manifest.dataset.sha256}`.\n"
    )
