import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest

from unimed_jax.reporting import charts


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 5e-4, [0, 1e-4, 2e-4, 3e-4, 4e-4, 5e-4]),
        (14.3, 22.1, [14, 16, 18, 20, 22, 24]),
        (-3, 4, [-4, -2, 0, 2, 4]),
        (10, 51200, [0, 20000, 40000, 60000]),
    ],
)
def test_ticks_are_round_and_span_the_data(low, high, expected):
    assert charts.ticks(low, high, 5) == pytest.approx(expected)


def chart(series, **options):
    return ET.fromstring(charts.line_chart(series, **options))


def texts(svg):
    return [element.text for element in svg.iter("text")]


def vertices(svg):
    (path,) = svg.iter("path")
    return [tuple(map(float, p.split())) for p in re.findall(r"[\d.]+ [\d.]+", path.get("d"))]


def test_points_land_where_the_axis_labels_are():
    svg = chart({"loss": [(0, 0.0), (50, 2.0), (100, 4.0)]})
    (x0, y0), (x1, y1), (x2, y2) = vertices(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert x2 > x0 and y2 < y0  # SVG's y grows downwards
    heights = {e.text: float(e.get("y")) for e in svg.iter("text") if e.get("text-anchor") == "end"}
    assert (heights["0"], heights["2"], heights["4"]) == pytest.approx((y0, y1, y2))
    assert [c.find("title").text for c in svg.iter("circle")][1] == "loss, step 50: 2"


def test_non_finite_points_are_gaps_and_not_drawn():
    points = [(1, 1.0), (2, math.nan), (3, 2.0), (4, 3.0), (5, math.inf)]
    svg = chart({"a": points})
    assert len(list(svg.iter("circle"))) == 3
    (path,) = svg.iter("path")
    assert path.get("d").count("M") == 2 and path.get("d").count("L") == 1
    assert "no finite values" in charts.line_chart({"a": [(1, math.nan)]})


@pytest.mark.parametrize("points", [[(7, 0.0)], [(7, 3.0)], [(1, -2.0), (2, -2.0)], [(1, 1e-30)]])
def test_a_single_point_and_a_constant_are_drawn_inside_the_plot(points):
    svg = chart({"a": points})
    for x, y in vertices(svg):
        assert 0 < x < 420 and 0 < y < 220
    assert len(set(texts(svg))) == len(texts(svg))  # neighbouring ticks have different labels


@pytest.mark.parametrize("scale", [3e-7, 5e-4, 0.02, 1.0, 14.3, 52.0, 900.0, 51200.0, 3e8])
def test_tick_labels_state_the_tick_values(scale):
    svg = chart({"a": [(1, scale), (2, 2.1 * scale)]})
    labels = [e.text for e in svg.iter("text") if e.get("text-anchor") == "end"]
    values = [float(label.replace("k", "e3")) for label in labels]
    steps = [b - a for a, b in itertools.pairwise(values)]
    assert steps == pytest.approx([steps[0]] * len(steps)) and values[0] <= scale < values[-1]


def test_long_series_are_averaged_not_sampled():
    svg = chart({"a": [(k, float(k % 2)) for k in range(10_000)]}, y_range=(0.0, 1.0))
    points = vertices(svg)
    assert 200 <= len(points) <= 400
    middle = (10 + 220 - 26) / 2
    assert all(abs(y - middle) < 5 for _, y in points)  # a stride would show only 0s or only 1s


def test_values_beyond_a_fixed_end_stay_at_the_border():
    assert vertices(chart({"a": [(0, 0.5), (1, 7.0)]}, y_range=(0.0, 1.0)))[1][1] == 10.0


def test_names_are_escaped():
    svg = chart({"<b>&": [(0, 1.0)]})
    assert next(svg.iter("title")).text.startswith("<b>&, step 0")


def test_a_spread_chart_has_a_point_and_its_deviation_at_every_place():
    series = {"a": [(0.2, 0.1), None, (0.6, 0.0)], "<b>": [(0.5, 0.2), (0.5, 0.2), (0.5, 0.2)]}
    svg = ET.fromstring(charts.spread_chart(["1pct", "10pct", "100pct"], series))
    assert texts(svg)[-3:] == ["1pct", "10pct", "100pct"]
    tips = [circle.find("title").text for circle in svg.iter("circle")]
    assert tips[:2] == ["a, 1pct: 0.200 ± 0.100", "a, 100pct: 0.600 ± 0.000"] and len(tips) == 5
    heights = {e.text: float(e.get("y")) for e in svg.iter("text") if e.get("text-anchor") == "end"}
    circles = [float(circle.get("cy")) for circle in svg.iter("circle")]
    assert circles[:2] == pytest.approx((heights["0.2"], heights["0.6"]), abs=0.1)
    lines = [p.get("d") for p in svg.iter("path") if p.get("class") == "line-0"]
    assert lines[0].count("M") == 2  # a gap where there is nothing
    x, top, bottom = map(float, re.match(r"M([\d.]+) ([\d.]+)V([\d.]+)", lines[1]).groups())
    assert len(lines) == 2 and 0 < x < 420
    assert (top, bottom) == pytest.approx((circles[0] * 2 - bottom, bottom), abs=0.2)
    assert top - bottom == pytest.approx(heights["0"] - heights["0.2"], abs=0.2)


def test_a_histogram_has_a_bar_per_bin_in_proportion():
    svg = ET.fromstring(charts.histogram([0, 10, 20, 30], [5, 0, 10], marker=15))
    bars = list(svg.iter("rect"))
    heights = [float(bar.get("height")) for bar in bars]
    assert heights[1] == 0 and heights[2] == pytest.approx(2 * heights[0], abs=0.2)
    assert bars[2].find("title").text == "20 to 30: 10"
    (marker,) = [e for e in svg.iter("line") if e.get("class") == "marker"]
    middle = float(bars[1].get("x")) + float(bars[1].get("width")) / 2
    assert float(marker.get("x1")) == pytest.approx(middle, abs=1)


def test_intervals_land_where_the_percents_are():
    svg = ET.fromstring(
        charts.interval_chart(
            ["a", "b & c"],
            {"one": [(0.5, 0.4, 0.7), None], "two": [(0.0, 0.0, 0.0), (1.0, math.nan, math.nan)]},
        )
    )
    at = {e.text: float(e.get("x")) for e in svg.iter("text") if e.get("text-anchor") == "middle"}
    assert list(at) == [str(percent) for percent in range(0, 101, 10)]
    circles = list(svg.iter("circle"))
    assert [float(c.get("cx")) for c in circles] == pytest.approx([at["50"], at["0"], at["100"]])
    assert float(circles[0].get("cy")) < float(circles[1].get("cy")) < float(circles[2].get("cy"))
    (start, end) = vertices(svg)  # one bar only: the others have no width
    assert (start[0], end[0]) == pytest.approx((at["40"], at["70"]))
    assert [c.find("title").text for c in circles][::2] == ["one, a: 50.00 [40.0, 70.0]",
                                                            "two, b & c: 100.00"]  # fmt: skip
