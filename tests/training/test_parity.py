"""The same rows make the same step however they are split over micro-batches and workers: to five digits."""

import pytest
from parity import first_steps
from processes import in_group

pytestmark = pytest.mark.slow


def test_one_step_is_the_same_in_one_batch_in_four_in_parts_and_on_two_workers() -> None:
    """In parts: a few tokens' logits at a time. Also where there are too few rows for all workers, as at the end of an
    epoch: none is learned from twice."""
    alone = in_group(first_steps, [(16, 1, 1, 16), (4, 4, 1, 16), (16, 1, 1, 16, 2_000), (16, 1, 1, 3)])
    together = in_group(first_steps, [(4, 2, 2, 16), (4, 2, 2, 16, 2_000), (4, 2, 2, 3)], workers=2)
    assert len(alone) == 22 and alone.keys() == together.keys()
    for name, (whole, *same, few) in alone.items():
        *also, few_together = together[name]
        for one in same + also:
            assert one == pytest.approx(whole, rel=1e-5), name
        assert few_together == pytest.approx(few, rel=1e-5), name
        assert min(whole[1], few[1]) > 1e-4, name
