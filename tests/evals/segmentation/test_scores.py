"""Dice and surface distances: by hand, beside MONAI, and their intervals."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from input_pipeline.manifest import Manifest, Shard, Split
from unimed_jax.evals import statistics
from unimed_jax.evals.segmentation import report
from unimed_jax.evals.segmentation.evaluator import Domain, ScoredUnit, SegmentationEvaluator
from unimed_jax.evals.segmentation.report import DomainScores, Overlay
from unimed_jax.evals.segmentation.scores import dice, hausdorff95
from unimed_jax.evals.statistics import mean_interval


def square(shape, begin, end):
    region = np.zeros(shape, bool)
    region[tuple(slice(a, b) for a, b in zip(begin, end, strict=True))] = True
    return region


def test_scores_by_hand():
    truth = square((10, 10), (2, 2), (6, 6))
    assert dice(truth, truth) == 1 and hausdorff95(truth, truth, (1, 1)) == 0
    moved = square((10, 10), (2, 4), (6, 8))
    assert dice(moved, truth) == 0.5
    assert hausdorff95(moved, truth, (1, 1)) == 2
    assert hausdorff95(moved, truth, (1, 3)) == 6  # mm along the axis of the shift
    nothing = np.zeros_like(truth)
    assert np.isnan(dice(truth, nothing)) and np.isnan(hausdorff95(truth, nothing, (1, 1)))
    assert dice(nothing, truth) == 0
    assert hausdorff95(nothing, truth, (3, 4)) == pytest.approx(45)


def test_the_distance_is_that_between_all_pairs_of_surface_points():
    rng = np.random.default_rng(0)
    for shape, spacing in (((12, 15), (1.0, 1.0)), ((6, 9, 8), (3.0, 1.0, 0.5))):
        found, truth = rng.random((2, *shape)) < 0.3
        points = []
        for region in (found, truth):
            padded = np.pad(region, 1)
            inside = np.ones(shape, bool)
            for axis in range(len(shape)):
                for shift in (-1, 1):
                    core = tuple(slice(1, -1) for _ in shape)
                    inside &= np.roll(padded, shift, axis)[core]
            points.append(np.argwhere(region & ~inside) * spacing)
        distances = cdist(*points)
        expected = max(np.percentile(distances.min(axis), 95) for axis in (0, 1))
        assert hausdorff95(found, truth, spacing) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("monai"), reason="needs MONAI: .[test]")
def test_scores_agree_with_monai(tmp_path):
    rng = np.random.default_rng(1)
    cases, arrays = [], {}
    for i, (shape, spacing) in enumerate(
        [((20, 24), (1.0, 1.0)), ((20, 24), (0.7, 2.5)), ((8, 16, 12), (4.0, 0.8, 0.8))]
    ):
        noise = rng.normal(size=(2, *shape))
        blobs = [square(shape, [2] * len(shape), [n - 3 for n in shape]) & (n > -1) for n in noise]
        blobs[0] = np.roll(blobs[0], 2, axis=-1)
        cases.append((*blobs, spacing))
        arrays |= {f"found_{i}": blobs[0], f"truth_{i}": blobs[1], f"spacing_{i}": spacing}
    np.savez(tmp_path / "in.npz", **arrays)
    script = Path(__file__).parents[2] / "helpers" / "hausdorff_reference.py"
    command = [sys.executable, script, tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True, timeout=600)
    ours = [[dice(f, t), hausdorff95(f, t, s)] for f, t, s in cases]
    np.testing.assert_allclose(ours, np.load(tmp_path / "out.npz")["scores"], rtol=1e-5)


def test_intervals_are_over_patients():
    rng = np.random.default_rng(2)
    values = rng.normal(0.7, 0.1, 200)
    mean, low, high = mean_interval(values, [str(i) for i in range(200)])
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(200)
    assert low == pytest.approx(mean - half, abs=0.003)
    assert high == pytest.approx(mean + half, abs=0.003)
    # ten copies of 20 patients say no more than the 20
    twenty = values[:20]
    alone = mean_interval(twenty, [str(i) for i in range(20)])
    copies = mean_interval(np.repeat(twenty, 10), [str(i // 10) for i in range(200)])
    np.testing.assert_allclose(alone, copies)
    with_nan = mean_interval(np.array([0.5, np.nan, 0.7]), ["a", "b", "c"])
    assert with_nan[0] == pytest.approx(0.6)
    assert np.isnan(mean_interval(np.array([np.nan]), ["a"])).all()
    assert statistics.NUM_RESAMPLES == 1000


class HalfRead(SegmentationEvaluator):
    """An evaluator that could decode two slices of five."""

    def __init__(self, domain):
        self._classes, self._domains, self._source = domain.classes, [domain], "drive"

    def _units(self, params, domain, overlays):
        mask = square((8, 8), (1, 1), (7, 5))
        yield ScoredUnit("a", (), lambda k: (mask, mask), num_samples=2)


def test_samples_that_do_not_decode_are_counted():
    shards = (Shard("val-00000-of-00001.tfrecord", 5, 1, ""),)
    content = Manifest("x", {"val": Split(5, {}, shards)}, 5, 5, 0, "", 1, "segmentation")
    evaluation = HalfRead(Domain("chase", Path(), content, ("val",), ("vessel",)))({})
    assert evaluation.metrics["chase/num_left_out"] == 3
    assert "chase: 3 samples that cannot be decoded are left out" in evaluation.table
    assert "3 samples that cannot be decoded" in evaluation.sections()[0].html


def test_metrics_table_and_overlays():
    scores = DomainScores(
        domain="chase",
        groups=("a", "b"),
        dice={"vessel": np.array([0.8, 0.6]), "lesion": np.array([np.nan, np.nan])},
        hd95={"vessel": np.array([3.0, 5.0]), "lesion": np.array([np.nan, np.nan])},
        unit="px",
    )
    metrics = scores.metrics()
    assert metrics["chase/vessel/dice"] == pytest.approx(0.7)
    assert metrics["chase/vessel/hd95"] == 4
    assert metrics["chase/mean/dice"] == pytest.approx(0.7)
    assert np.isnan(metrics["chase/lesion/dice"])
    table = report.text_table([scores], "drive")
    assert "drive → chase" in table and "0.700" in table and "4.0 px" in table
    assert "held out" in report.text_table([scores], "chase")
    truth, found = (square((8, 8), (1, a), (7, a + 4))[..., None] for a in (1, 3))
    item = Overlay("chase", "<b>", np.zeros((8, 8, 3), np.uint8), found, truth, np.array([0.5]),
                   ("vessel",))  # fmt: skip
    drawn = report.outlined(item)
    assert (drawn[1, 1] != drawn[1, 6]).any() and drawn[1, 1].any() and drawn[1, 6].any()
    assert not drawn[3, 2].any()  # inside of both outlines
    page = report.overlays_section([item]).html
    assert "&lt;b&gt;" in page and "data:image/png" in page and "Dice vessel 0.50" in page
