"""Tokens a second of a student's training, beside a plain `transformers.Trainer` on the same model, rows and batches.

    python benchmarks/training.py [loops] [ray] [--data FILE --fields prompt=question,response=answer] [--repeats 5]

`loops`: one process, each way in turn and round after round: the stock Trainer with its own loss and padding, ours
unpacked, bucketed and packed. Tokens are those of the rows; padding counts for nothing. `ray`: the median step of the
same training through `limbeck train`, beside that of the same loop alone.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose training.py is this file
from schemas.objective import Sft  # noqa: E402
from schemas.student import TrainingData, TrainingSpec  # noqa: E402
from training.examples import Pair, stream_examples  # noqa: E402
from training.rows import TokenRow, rows_for  # noqa: E402
from training.session import Report  # noqa: E402
from training.students import Student, load_student, tokenizer_for  # noqa: E402
from training.trainer import trainer_of  # noqa: E402

STUDENT = {"from": "smollm2-135m", "layers": 4}
ROWS, BATCH, LENGTH = 96, 8, 512


def spec_of(data: TrainingData, **settings: Any) -> TrainingSpec:
    whole = {
        "student": STUDENT,
        "data": data,
        "batch_size": BATCH,
        "max_length": LENGTH,
        "checkpoints": {"every": 10**6},
    }
    return TrainingSpec.model_validate({**whole, **settings})


def stock(spec: TrainingSpec, student: Student, rows: Sequence[TokenRow], out: Path) -> float:
    """Seconds of a plain Trainer: its own loss, its own collator."""
    features = [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
    arguments = transformers.TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=spec.learning_rate,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(), logging_steps=10,
    )  # fmt: skip
    collator = transformers.DataCollatorForSeq2Seq(student.tokenizer, student.model)
    trainer = transformers.Trainer(student.model, arguments, data_collator=collator, train_dataset=features)
    trainer.remove_callback(transformers.PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def ours(spec: TrainingSpec, student: Student, rows: Sequence[TokenRow], out: Path) -> float:
    trainer = trainer_of(spec, student, None, rows, rows[:1], out)
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def loops(data: TrainingData, repeats: int, folder: Path) -> Table:
    ways: dict[str, tuple[Callable[..., float], dict[str, Any]]] = {
        "transformers.Trainer, padded": (stock, {"packing": False}),
        "limbeck, padded": (ours, {"packing": False}),
        "limbeck, padded, bucketed": (ours, {"packing": False, "bucketing": True}),
        "limbeck, packed": (ours, {"packing": True}),
    }
    speeds: dict[str, list[float]] = defaultdict(list)
    for number in range(repeats):
        for way, (run, settings) in ways.items():
            spec = spec_of(data, **settings)
            student, rows = prepared(spec)
            tokens = sum(len(row.input_ids) for row in rows)
            speeds[way].append(tokens / run(spec, student, rows, folder / f"{number}-{len(speeds)}"))
        print(", ".join(f"{way}: {found[-1]:,.0f}" for way, found in speeds.items()), file=sys.stderr, flush=True)
    table = Table("loop", "tokens/s", "beside the first", title=f"{ROWS} rows, batches of {BATCH}, median of {repeats}")
    first = statistics.median(speeds["transformers.Trainer, padded"])
    for way, found in speeds.items():
        table.add_row(way, f"{statistics.median(found):,.0f}", f"{statistics.median(found) / first:.2f} x")
    return table


def prepared(spec: TrainingSpec) -> tuple[Student, list[TokenRow]]:
    """A fresh student, always the same, and the rows that it learns."""
    assert spec.data is not None
    student = load_student(spec.student, tokenizer_for(spec.student, (), None), spec.seed)
    rows, _ = rows_for(spec, first_pairs(spec.data), student.tokenizer, student.seq2seq)
    return student, rows


def first_pairs(data: TrainingData) -> list[Pair]:
    """The first rows of the data."""
    return [pair for (pair,) in itertools.islice(stream_examples(data, Sft()), ROWS)]


def through_ray(data: TrainingData, repeats: int, folder: Path) -> Table:
    """The same rows and steps alone and through Ray Train; of both the median step."""
    shares: list[float] = []
    rows = folder / "pairs.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p.prompt, "response": p.response}) + "\n" for p in first_pairs(data)))
    spec = spec_of(TrainingData(path=str(rows)), eval_fraction=1 / ROWS, epochs=4)
    place = folder / "spec.yaml"
    place.write_text(yaml.safe_dump(spec.model_dump(mode="json", by_alias=True)))
    for number in range(repeats):
        student, made = prepared(spec)
        (work := folder / f"a{number}" / "work").mkdir(parents=True)
        report = Report(work, 0.0, 0.0, None)
        trainer_of(spec, student, None, made[1:], made[:1], folder / f"a{number}", [report]).train()
        out = folder / f"ray-{number}"
        command = [sys.executable, "-m", "limbeck.cli", "train", str(place), "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        alone, inside = report.step_seconds, json.loads((out / "student" / "metrics.json").read_text())["step_seconds"]
        shares.append(inside / alone - 1)
        print(f"a step alone {alone:.2f} s, through Ray Train {inside:.2f} s", file=sys.stderr, flush=True)
    table = Table("Ray Train adds to a step", title=f"median of {repeats}")
    table.add_row(f"{100 * statistics.median(shares):.1f} %")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["loops", "ray", []], default=[])
    parser.add_argument("--data", default=str(ROOT / "examples" / "students" / "pairs.jsonl"))
    parser.add_argument("--fields", default="", help="as in prompt=question,response=answer")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    fields = dict(part.split("=") for part in options.fields.split(",") if part)
    data = TrainingData.model_validate({"path": options.data, "fields": fields})
    parts = options.parts or ["loops", "ray"]
    with tempfile.TemporaryDirectory() as folder:
        if "loops" in parts:
            Console().print(loops(data, options.repeats, Path(folder)))
        if "ray" in parts:
            Console().print(through_ray(data, options.repeats, Path(folder)))


if __name__ == "__main__":
    main()
