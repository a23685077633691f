"""The same rows make the same step however they are split over micro-batches and workers: to five digits."""

import pytest
from parity import first_steps
from processes import in_group

pytestmark = pytest.mark.slow


def test_one_step_is_the_same_in_one_batch_in_four_and_on_two_workers() -> None:
    alone = in_group(first_steps, [(16, 1, 1), (4, 4, 1)])
    together = in_group(first_steps, [(4, 2, 2)], workers=2)
    assert len(alone) == 22 and alone.keys() == together.keys()
    for name, ((loss, norm), four) in alone.items():
        assert four == pytest.approx([loss, norm], rel=1e-5), name
        assert together[name][0] == pytest.approx([loss, norm], rel=1e-5), name
        assert norm > 1e-4, name
