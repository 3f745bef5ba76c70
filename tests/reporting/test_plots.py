"""Figures of the notebooks: what is drawn is what was given."""

import io

import numpy as np
from matplotlib import colors
from PIL import Image

from unimed_jax.reporting import plots

PICTURES = [Image.new("L", (8, 6), 100 * i) for i in range(2)]
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])


def rendered(figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert np.asarray(Image.open(buffer)).std() > 1
    assert not plots.plt.get_fignums()  # shown once, as the value of a cell


def charts(figure):
    """The axes with bars, and the colours of their longest bars."""
    found = [axis for axis in figure.axes if axis.patches]
    longest = [max(axis.patches, key=lambda bar: bar.get_width()) for axis in found]
    return found, [colors.to_hex(bar.get_facecolor()) for bar in longest]


def test_predictions_are_bars_as_long_as_probabilities():
    figure = plots.predictions(PICTURES, ["one", "two"], ["a", "b", "c"], PROBABILITIES, [0, 1])
    rendered(figure)
    bars, colours = charts(figure)
    lengths = [[bar.get_width() for bar in axis.patches] for axis in bars]
    np.testing.assert_array_equal(lengths, PROBABILITIES)
    assert [axis.get_title() for axis in figure.axes if axis.images] == ["one", "two"]
    assert colours == [plots._ACCENT, plots._WRONG]
    bold = [[t.get_fontweight() for t in axis.get_yticklabels()].index("bold") for axis in bars]
    assert bold == [0, 1]
    assert [t.get_text() for t in bars[1].texts] == ["10%", "30%", "60%"]


def test_without_targets_no_prediction_is_wrong():
    figure = plots.predictions(PICTURES, ["one", "two"], ["a", "b", "c"], PROBABILITIES, columns=1)
    assert charts(figure)[1] == [plots._ACCENT, plots._ACCENT]


def test_no_predictions_are_an_empty_figure():
    assert charts(plots.predictions([], [], ["a", "b"], np.zeros((0, 2)), []))[0] == []


def test_a_matrix_is_written_row_by_row():
    counts = np.array([[9, 1, 0], [2, 3, 5]])
    shares = counts / counts.sum(1, keepdims=True)
    figure = plots.matrix(counts, ["r", "s"], ["a", "b", "c"], number_format="{}", shade=shares)
    rendered(figure)
    (axis,) = figure.axes
    found = {(int(t.get_position()[1]), int(t.get_position()[0])): t for t in axis.texts}
    assert {place: t.get_text() for place, t in found.items()} == {
        place: str(count) for place, count in np.ndenumerate(counts)
    }
    assert found[0, 0].get_color() == "white" and found[0, 2].get_color() == "black"
    np.testing.assert_array_equal(axis.images[0].get_array(), shares)


def test_intervals_span_low_to_high_and_gaps_are_left_out():
    others = {"published": [50.0, np.nan]}
    figure = plots.intervals(["x", "y"], [60, 70], [55, 61], [66, 75], label="ours", others=others)
    rendered(figure)
    (axis,) = figure.axes
    (segments,) = (c.get_segments() for c in axis.collections)
    assert [s[:, 0].tolist() for s in segments] == [[55, 66], [61, 75]]
    lines = {line.get_label(): line for line in axis.lines}
    np.testing.assert_array_equal(lines["published"].get_xdata(), [50.0, np.nan])
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["published", "ours"]
