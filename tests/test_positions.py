"""Sinusoids against a loop over the printed formula; zero, learned and fixed positions."""

import math

import pytest
import torch

from mmkd_lite.models.positions import Positions, sinusoid, sinusoidal_grid


def test_sinusoid_is_the_formula_of_the_original_transformer():
    width = 8
    table = sinusoid(torch.arange(5), width)
    for position in range(5):
        for i in range(width // 2):
            angle = position / 10_000 ** (2 * i / width)
            assert float(table[position, i]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[position, width // 2 + i]) == pytest.approx(
                math.cos(angle), abs=1e-6
            )


def test_similarity_of_two_sinusoids_depends_on_their_distance_only():
    table = sinusoid(torch.arange(20), 16)
    products = table @ table.T
    torch.testing.assert_close(products[3, 7], products[12, 16], rtol=1e-5, atol=1e-5)
    assert products[3, 7] < products[3, 4] < products[3, 3]


@pytest.mark.parametrize("cls_position", [False, True])
def test_every_place_on_the_grid_is_unique(cls_position):
    table = sinusoidal_grid(3, 4, 16, cls_position)
    assert table.shape == (12 + cls_position, 16)
    distances = torch.cdist(table, table) + torch.eye(len(table))
    assert distances.min() > 0.1


def test_grid_tells_column_and_row():
    table = sinusoidal_grid(3, 4, 16)
    place = {(row, column): table[4 * row + column] for row in range(3) for column in range(4)}
    torch.testing.assert_close(place[0, 2][:8], place[1, 2][:8], rtol=0, atol=0)  # same column
    torch.testing.assert_close(place[2, 0][8:], place[2, 3][8:], rtol=0, atol=0)  # same row
    torch.testing.assert_close(place[0, 3][:8], sinusoid(torch.tensor([3]), 8)[0])
    torch.testing.assert_close(place[2, 0][8:], sinusoid(torch.tensor([2]), 8)[0])


@pytest.mark.parametrize("kind", ["learned", "fixed"])
def test_without_its_own_position_cls_gets_zero(kind):
    positions = Positions(sinusoidal_grid(2, 2, 8), kind, cls_position=False)
    torch.nn.init.ones_(positions.table) if kind == "learned" else None
    sequence = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    added = positions(sequence) - sequence
    assert (added[:, 0] == 0).all()
    torch.testing.assert_close(added[:, 1:], positions.table.expand(3, -1, -1), atol=1e-6, rtol=0)


def test_learned_positions_are_parameters_and_fixed_ones_are_not():
    table = sinusoidal_grid(2, 2, 8)
    assert [name for name, _ in Positions(table, "learned", False).named_parameters()] == ["table"]
    fixed = Positions(table, "fixed", False)
    assert not list(fixed.parameters())
    assert not fixed.state_dict()


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="divisible by 4, got 10"):
        sinusoidal_grid(2, 2, 10)
    with pytest.raises(ValueError, match="even width, got 7"):
        sinusoid(torch.arange(3), 7)
    with pytest.raises(ValueError, match="'rotary'"):
        Positions(torch.zeros(2, 4), "rotary", True)
