"""The same rows make the same step however they are split over micro-batches and workers: to five digits."""

import json
from pathlib import Path

import pytest
from processes import last_line

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("parity.py")
Steps = dict[str, list[list[float]]]


def measured(*ways: str, workers: int = 1) -> Steps:
    """What each way, BATCHxACCUMULATIONxWORKERS, measured."""
    found: Steps = json.loads(last_line(SCRIPT, *ways, workers=workers))
    return found


def test_one_step_is_the_same_in_one_batch_in_four_and_on_two_workers() -> None:
    alone = measured("16x1x1", "4x4x1")
    together = measured("4x2x2", workers=2)
    assert len(alone) == 22 and alone.keys() == together.keys()
    for name, ((loss, norm), four) in alone.items():
        assert four == pytest.approx([loss, norm], rel=1e-5), name
        assert together[name][0] == pytest.approx([loss, norm], rel=1e-5), name
        assert norm > 1e-4, name
