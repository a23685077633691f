"""Several epochs are the same on one worker and on two, and where they are stopped and resumed."""

from pathlib import Path

import pytest
from epochs import EPOCHS, OBJECTIVES, losses
from processes import in_group

pytestmark = pytest.mark.slow


def test_epochs_are_the_same_on_two_workers_and_when_they_are_resumed(tmp_path: Path) -> None:
    stops = {"sft": 3, "minillm": 9}  # in the second epoch
    alone = in_group(losses, str(tmp_path / "alone"), 1, stops)
    together = in_group(losses, str(tmp_path / "together"), 2, stops, workers=2)
    for name, (whole, resumed) in alone.items():
        visits = OBJECTIVES[name].get("reuse", 1)
        assert len(whole) == 2 * visits * EPOCHS and resumed == whole, name
        assert together[name][1] == together[name][0] == pytest.approx(whole, rel=1e-4, abs=1e-6), name
