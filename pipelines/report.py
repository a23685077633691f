"""`report.html`: one self-contained page of pictures. Every text of a model is escaped by the template engine."""

import base64
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.publish import Published
from pipelines.rundir import RunDirectory, replace_text
from schemas.job import JobSpec
from schemas.manifest import Manifest, Spend

BINS, OPENINGS = 24, 10
SHOWN = 2_000  # characters of a text; the dataset holds all of it


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    count: int
    share: float  # of the longest bar, 0 to 1


def histogram(values: list[int]) -> list[Bar]:
    """Up to `BINS` bars of equal width from 0 to the largest value."""
    if not values:
        return []
    width = max(1, -(-(max(values) + 1) // BINS))
    counts = [0] * (max(values) // width + 1)
    for value in values:
        counts[value // width] += 1
    top = max(counts)
    starts = range(0, len(counts) * width, width)
    labels = [str(start) if width == 1 else f"{start}-{start + width - 1}" for start in starts]
    return [Bar(label, n, n / top) for label, n in zip(labels, counts, strict=True)]


def funnel(manifest: Manifest) -> list[Bar]:
    """Rows in, what was rejected on the way, rows out."""
    whole = manifest.rows.source + manifest.rows.generated
    steps = [("source rows", manifest.rows.source)]
    if manifest.rows.generated:
        steps.append(("written by the teacher", manifest.rows.written))
    steps += sorted(((f"rejected: {r}", n) for r, n in manifest.rows.rejected.items()), key=lambda s: -s[1])
    steps.append(("accepted", manifest.rows.accepted))
    return [Bar(label, count, count / max(1, whole)) for label, count in steps]


def openings(firsts: list[str]) -> list[Bar]:
    """How questions begin, the commonest first: few ways to begin, little variety."""
    counts = Counter(first.casefold() for first in firsts)
    shown = counts.most_common(OPENINGS)
    bars = [(first, count) for first, count in shown]
    if rest := len(counts) - len(shown):
        bars.append((f"{rest:,} other ways", len(firsts) - sum(count for _, count in shown)))
    return [Bar(label, count, count / max(1, len(firsts))) for label, count in bars]


def spending(spec: JobSpec, spend: Spend) -> list[tuple[str, float, float]]:
    """(label, US dollars, share of the longest bar): what answers cost, what is held for calls in doubt, the cap."""
    steps = [("answers", spend.usd - spend.in_doubt_usd), ("reserved, in doubt", spend.in_doubt_usd)]
    if spec.budget is not None and spec.budget.usd is not None:
        steps.append(("budget", spec.budget.usd))
    most = max(usd for _, usd in steps)
    return [(label, usd, usd / most) for label, usd in steps] if most else []


def student_of(run: RunDirectory, sha256: str) -> dict[str, Any] | None:
    """Metrics and the loss curve of the student, None where there is none of the rows with this SHA-256."""
    metrics = run.student / "metrics.json"
    if not metrics.is_file() or run.has_student_of_other_rows(sha256):
        return None
    curve = run.student / "curve.png"
    picture = base64.b64encode(curve.read_bytes()).decode() if curve.is_file() else ""
    return {"metrics": json.loads(metrics.read_text()), "curve": picture}


def write_report(spec: JobSpec, run: RunDirectory, manifest: Manifest) -> None:
    """Render the page from the manifest, `shown.json` (what publishing kept for it) and the student's metrics."""
    shown = json.loads((run.work / "shown.json").read_text())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("report.html.j2").render(
        spec=spec, manifest=manifest, funnel=funnel(manifest), student=student_of(run, manifest.dataset.sha256),
        asked=histogram([talk[0] for talk in shown["talks"]]), answered=histogram([talk[1] for talk in shown["talks"]]),
        openings=openings([talk[2] for talk in shown["talks"]]), spending=spending(spec, manifest.spend),
        samples=shown["samples"], clusters=shown["clusters"], rejections=shown["rejections"],
        agree=shown["agree"], judged=shown["judged"], SHOWN=SHOWN,
    )  # fmt: skip
    replace_text(run.report, page)


def keep_for_report(run: RunDirectory, published: Published, rejections: list[dict[str, str]]) -> None:
    """Keep what the page shows, so that it can be drawn again once a student is trained."""
    shown = {**asdict(published), "rejections": rejections}
    replace_text(run.work / "shown.json", json.dumps(shown, ensure_ascii=True))
