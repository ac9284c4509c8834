"""Positions in the stream of pairs, and the order of an epoch."""

import numpy as np
import pytest

from mmkd_lite.data import batches


@pytest.mark.parametrize("arguments", [(-1, 2, 0, 1), (0, 0, 0, 1), (0, 2, 2, 2), (0, 2, -1, 2)])
def test_impossible_positions_are_refused(arguments):
    with pytest.raises(ValueError, match="need step >= 0"):
        batches.global_rows(*arguments)


def test_order_of_an_epoch_is_a_shuffle_of_its_own():
    orders = [batches.epoch_order(seed, epoch, 1000) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    for order in orders:
        assert sorted(order.tolist()) == list(range(1000))
        assert (order == np.arange(1000)).sum() < 10
        assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15
    assert (orders[0] == orders[1]).sum() < 10 and (orders[0] == orders[2]).sum() < 10
