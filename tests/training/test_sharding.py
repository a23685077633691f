"""Weights that are shared out over workers (FSDP2) learn what whole ones learn, and are written whole."""

from pathlib import Path

import pytest
from processes import in_group
from sharded import TRAININGS, outcomes


@pytest.mark.slow
def test_a_student_that_is_shared_out_learns_the_same_and_is_resumed(tmp_path: Path) -> None:
    alone = in_group(outcomes, str(tmp_path / "alone"), 1)
    together = in_group(outcomes, str(tmp_path / "together"), 2, workers=2)
    assert len(alone) == len(TRAININGS) and len(together) == 2 * len(TRAININGS)
    for name, whole in alone.items():
        shared, resumed = together[name], together[f"{name}, resumed"]
        assert shared["losses"] == pytest.approx(whole["losses"], rel=1e-4), name
        assert shared["held_out"] == pytest.approx(whole["held_out"], rel=1e-4) and shared["held_out"], name
        assert shared["count"] == whole["count"] and shared["weights"] == pytest.approx(whole["weights"], rel=1e-4), (
            name
        )
        assert resumed["losses"] == shared["losses"] and resumed["weights"] == shared["weights"], name
        assert shared["here"] < 0.6 * whole["here"], name  # each worker holds its share
