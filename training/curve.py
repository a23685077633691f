"""The picture of a training: loss against steps, with the held-out loss before and after."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw_curve(
    losses: Sequence[tuple[int, float]], held_out: Sequence[tuple[int, float]], metrics: dict[str, Any], place: Path
) -> None:
    """Write a PNG of 1240 x 720 pixels. `held_out`: (step, loss) of the measurements on the way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.2, 3.6), dpi=200)
    axes.plot(
        [s for s, _ in losses],
        [v for _, v in losses],
        color="#2f6f8f",
        linewidth=1.4,
        label=f"training, {metrics['objective']}",
    )
    last = metrics.get("best_step") or (losses[-1][0] if losses else 1)
    ends = [metrics.get("loss_fine_tuned", metrics["loss_before"]), metrics["loss_after"]]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="#b5533c", linewidth=1, marker=".", alpha=0.8)
    axes.plot(
        [0, last], ends, "o", color="#b5533c", markersize=6, label="held out, cross-entropy", clip_on=False, zorder=3
    )
    axes.annotate(f"{ends[0]:.2f}", (0, ends[0]), xytext=(-7, -4), textcoords="offset points", ha="right")
    axes.annotate(f"{ends[1]:.2f}", (last, ends[1]), xytext=(0, 7), textcoords="offset points", ha="right")
    axes.set_xlim(left=-0.12 * last)  # room for the first label beside its point
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    if min([v for _, v in losses] + ends) >= 0:  # MiniLLM's loss is negative where a student gains by what it wrote
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(place)
    pyplot.close(figure)
