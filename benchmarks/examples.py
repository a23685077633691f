"""How long each example of a student takes, from `limbeck train` to its student, and what it learned.

python benchmarks/examples.py [sft gkd]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = {place.stem: place for place in sorted((ROOT / "examples" / "students").glob("*.yaml"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(EXAMPLES)}: all of them where none is named")
    chosen = parser.parse_args().names or list(EXAMPLES)
    if unknown := set(chosen) - EXAMPLES.keys():
        parser.error(f"no such example: {', '.join(sorted(unknown))}")
    table = Table("example", "seconds", "loss", "forward KL", "reverse KL", title="before -> after, on rows held out")
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            out, started = Path(folder) / name, time.monotonic()
            command = [sys.executable, "-m", "limbeck.cli", "train", str(EXAMPLES[name]), "--out", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
            seconds = time.monotonic() - started
            if done.returncode:
                raise SystemExit(done.stderr)
            metrics = json.loads((out / "student" / "metrics.json").read_text())
            cells = [
                f"{metrics[f'{one}_before']:.2f} -> {metrics[f'{one}_after']:.2f}" if f"{one}_after" in metrics else ""
                for one in ("loss", "forward_kl", "reverse_kl")
            ]
            table.add_row(name, f"{seconds:.0f}", *cells)
            print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
