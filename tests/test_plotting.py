"""Figures show the numbers they are given, and nothing random."""

import io

import numpy as np
import pytest
import torch

from mmkd_lite import plotting


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_bars_have_the_heights_intervals_and_chance_that_were_given():
    figure = plotting.bars(
        {"both": [20.0, 40.0], "KL only": [3.0, 8.0]},
        title="t",
        label="per cent",
        groups=("R@1", "R@5"),
        half_width={"both": [1.0, 2.0]},
        chance=[0.1, 0.5],
    )
    axes = figure.axes[0]
    assert sorted(bar.get_height() for bar in axes.patches) == [3.0, 8.0, 20.0, 40.0]
    assert texts(figure) == ["20", "40", "3", "8"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(legend) == {"both", "KL only", "chance"}
    with pytest.raises(ValueError, match="'both' has 1 values for 2 groups"):
        plotting.bars({"both": 1.0}, title="t", label="l", groups=("a", "b"))


@pytest.mark.parametrize("groups", [("",), ("R@1", "R@5")])
def test_a_single_run_keeps_its_number_without_an_interval(groups):
    row, unknown = [20.0, 40.0][: len(groups)], [float("nan")] * len(groups)
    figure = plotting.bars(
        {"once": row}, title="t", label="l", groups=groups, half_width={"once": unknown}
    )
    places = [text.xy for axes in figure.axes for text in axes.texts]
    assert texts(figure) == ["20", "40"][: len(groups)] and np.isfinite(places).all()
    assert not figure.axes[0].containers[1:]  # no whiskers


def test_without_groups_bars_lie_beside_their_names():
    figure = plotting.bars(
        {"both": 20.0, "KL only": 3.0},
        title="t",
        label="per cent",
        half_width={"both": 2.0},
        chance=0.5,
    )
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [20.0, 3.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["both", "KL only"]
    assert texts(figure) == ["20", "3"] and axes.get_xlabel() == "per cent"
    assert axes.yaxis_inverted() and axes.get_legend().get_texts()[0].get_text() == "chance"
    with pytest.raises(ValueError, match="'both' has 2 values for 1 groups"):
        plotting.bars({"both": [1.0, 2.0]}, title="t", label="l")


def test_learning_curves_average_and_name_what_is_missing():
    rows = [{"step": step, "loss": float(step % 2)} for step in range(10)]
    line = plotting.learning_curves(rows, smooth=2).axes[0].lines[0]
    assert np.array_equal(line.get_xdata(), np.arange(1, 10))
    assert np.allclose(line.get_ydata(), 0.5)
    runs = plotting.learning_curves({"a": rows, "b": rows})
    assert [line.get_label() for line in runs.axes[0].lines] == ["a loss", "b loss"]
    with pytest.raises(ValueError, match="no row holds 'kl'; the rows hold: loss, step"):
        plotting.learning_curves(rows, ["kl"])


def test_image_grid_takes_either_layout_and_either_type():
    pictures = torch.rand(5, 3, 8, 8)
    figure = plotting.image_grid(pictures, ["one two three", "b"], columns=3, characters=8)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(shown) == 5 and len(figure.axes) == 6
    assert np.allclose(shown[4], pictures[4].permute(1, 2, 0))
    assert figure.axes[0].texts[0].get_text() == "one two\nthree"
    same = plotting.image_grid((pictures * 255).byte().permute(0, 2, 3, 1).numpy())
    assert same.axes[0].images[0].get_array().shape == (8, 8, 3)


def test_heatmap_writes_its_values_while_they_are_few():
    figure = plotting.heatmap([[0.0, 0.25], [0.5, 1.0]], title="t", rows="ab", columns="cd")
    assert texts(figure) == ["0.00", "0.25", "0.50", "1.00"]
    assert not texts(plotting.heatmap(np.zeros((13, 13)), title="t"))


def test_the_same_input_gives_the_same_bytes():
    def draw():
        buffer = io.BytesIO()
        plotting.bars({"a": 1.0}, title="t", label="l", chance=0.5).savefig(buffer)
        return buffer.getvalue()

    assert draw() == draw()
