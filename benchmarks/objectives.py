"""Each white-box objective beside more fine-tuning: how near a student comes to its teacher on rows held out.

    python benchmarks/objectives.py [kd minillm] [--data FILE --fields prompt=instruction,response=answer] [--steps 100]

As in the papers of the on-policy objectives, the teacher (SmolLM2-135M) is fine-tuned on the responses first, and so is
the student, its teacher cut to a fifth of the layers. Then every objective goes on from that same student for as many
steps, on the same rows. KL in nats a response token, on 64 rows that none of them has learned, with 95 % intervals.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2-135m"
WAYS: dict[str, dict[str, Any]] = {
    "sft, again": {"objective": {"name": "sft"}},
    "kd": {"objective": {"name": "kd"}},
    "kd, top 64 from a cache": {"objective": {"name": "kd", "tau": 1.0, "top_k": 64, "cache": "top"}},
    "kd, 64 drawn, from a cache": {"objective": {"name": "kd", "tau": 1.0, "sampled": 64, "cache": "drawn"}},
    "hidden": {"objective": {"name": "hidden", "distance": "cosine"}},
    "gkd": {"objective": {"name": "gkd", "beta": 0.5, "lambda": 0.5, "max_new_tokens": 24}},
    "minillm": {"objective": {"name": "minillm", "max_new_tokens": 24, "reuse": 2}},
}  # fmt: skip
CHARACTERS = 250  # of a prompt and its response together: two cores take longer ones too long
ENDS = ("", "_low", "_high")  # of an interval
SHOWN = ("forward_kl", "reverse_kl", "loss", "rouge_l")


def trained(spec: dict[str, Any], out: Path) -> dict[str, Any]:
    """The metrics of a student that `limbeck train` makes."""
    place = out.with_suffix(".yaml")
    place.write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "limbeck.cli", "train", str(place), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    metrics: dict[str, Any] = json.loads((out / "student" / "metrics.json").read_text())
    print(out.name, {n: round(metrics[f"{n}_after"], 4) for n in SHOWN if f"{n}_after" in metrics}, flush=True)
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", help=f"of {'; '.join(WAYS)}: all of them where none is named")
    parser.add_argument("--data", default=str(ROOT / "examples" / "students" / "pairs.jsonl"))
    parser.add_argument("--fields", default="", help="as in prompt=question,response=answer")
    parser.add_argument("--rows", type=int, default=1200, help="that are taken from its start")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.ways) - WAYS.keys():
        parser.error(f"no such way: {', '.join(unknown)}")
    chosen = {name: way for name, way in WAYS.items() if name in (options.ways or WAYS)}
    fields = dict(part.split("=") for part in options.fields.split(",") if part)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = _first_rows(Path(options.data), fields, options.rows, place / "rows.jsonl")
        shared = {
            "data": {"path": str(rows)}, "batch_size": 8, "max_length": 96, "packing": False,
            "steps": options.steps, "learning_rate": 1.0e-4, "eval_rows": 64, "seed": options.seed,
        }  # fmt: skip
        trained({**shared, "student": MODEL, "learning_rate": 3.0e-5}, place / "teacher")
        shared["teacher"] = teacher = str(place / "teacher" / "student")
        first = {"student": {"from": teacher, "layers": 6}, "steps": 2 * options.steps, "learning_rate": 3.0e-4}
        found = {"sft": trained({**shared, **first}, place / "first")}
        student = str(place / "first" / "student")
        for number, (name, way) in enumerate(chosen.items()):
            objective = dict(way["objective"])
            if "cache" in objective:
                objective["cache"] = str(place / objective["cache"])
            found[name] = trained({**shared, "student": student, "objective": objective}, place / f"{number}")
    table = Table("objective", *SHOWN, "seconds", title=f"{options.steps} steps of 8 rows from one fine-tuned student")
    for name, metrics in found.items():
        cells = ("{:.3f} [{:.3f}, {:.3f}]".format(*(metrics[f"{one}_after{end}"] for end in ENDS)) for one in SHOWN)
        table.add_row(name, *cells, f"{metrics['train_seconds']:.0f}")
    Console(width=140).print(table)


def _first_rows(data: Path, fields: dict[str, str], count: int, out: Path) -> Path:
    """The first rows of a file whose prompt and response are short enough for two cores."""
    sys.path.insert(0, str(ROOT))
    from schemas.objective import Sft
    from schemas.student import TrainingData
    from training.examples import stream_examples

    spec = TrainingData.model_validate({"path": str(data), "fields": fields})
    with out.open("w") as file:
        short = (p for (p,) in stream_examples(spec, Sft()) if len(p.prompt) + len(p.response) < CHARACTERS)
        for pair in itertools.islice(short, count):
            file.write(json.dumps({"prompt": pair.prompt + "\n", "response": pair.response}) + "\n")
    return out


if __name__ == "__main__":
    main()
