"""Averages of parameters against float64, torch's SWA, and a search over all soups."""

import itertools
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from unimed_jax.distributed import sharding
from unimed_jax.weights import averaging

REFERENCE = Path(__file__).parents[1] / "helpers" / "torch_reference.py"


def random_params(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "tower": {"kernel": rng.standard_normal((8, 16), np.float32)},
        "logit_scale": np.float32(rng.uniform(1, 4)),
    }


def test_shares_are_applied_in_float64_and_the_dtype_is_kept():
    params = [random_params(seed) for seed in range(3)]
    shares = (0.5, 0.3, 0.2)
    got = averaging.combine(zip(shares, params, strict=True))
    kernels = np.array([p["tower"]["kernel"] for p in params], np.float64)
    expected = np.tensordot(shares, kernels, axes=1)
    np.testing.assert_allclose(got["tower"]["kernel"], expected, rtol=1e-14, atol=1e-15)
    cast = averaging.cast(got, params[0])
    assert cast["tower"]["kernel"].dtype == cast["logit_scale"].dtype == np.float32
    np.testing.assert_array_equal(cast["tower"]["kernel"], expected.astype(np.float32))


@pytest.mark.slow
@pytest.mark.parity
def test_the_uniform_average_is_torchs(tmp_path):
    params = [random_params(seed) for seed in range(7)]
    np.savez(
        tmp_path / "in.npz",
        kernel=np.stack([p["tower"]["kernel"] for p in params]),
        scale=np.stack([p["logit_scale"] for p in params]),
    )
    command = [sys.executable, REFERENCE, "uniform_average", tmp_path / "in.npz"]
    subprocess.run([*command, tmp_path / "out.npz"], check=True, timeout=300)
    theirs = np.load(tmp_path / "out.npz")
    ours = averaging.combine((1 / 7, p) for p in params)
    np.testing.assert_allclose(ours["tower"]["kernel"], theirs["kernel"], rtol=0, atol=3e-7)
    np.testing.assert_allclose(ours["logit_scale"], theirs["scale"], rtol=0, atol=3e-7)


def test_a_greedy_soup_takes_what_does_not_lower_its_score():
    target = random_params(100)["tower"]["kernel"]
    # noisy copies of the target, which an average comes closer to, and two that only harm
    noise = (0.9, 1.0, 0.8, 30.0, 1.1, 40.0)
    params = [
        {"a": target + scale * random_params(seed)["tower"]["kernel"]}
        for seed, scale in enumerate(noise)
    ]

    def score(soup, _=None):
        return -float(np.square(soup["a"] - target).mean())

    scores = [score(p) for p in params]
    soup = averaging.greedy_soup(scores, lambda index: params[index], score)
    assert soup.chosen[0] == np.argmax(scores)
    assert set(soup.chosen) == {0, 1, 2, 4}
    assert soup.trials.keys() == set(range(6)) - {soup.chosen[0]}
    mean = np.mean([params[i]["a"] for i in soup.chosen], axis=0, dtype=np.float64)
    np.testing.assert_allclose(soup.params["a"], mean, rtol=0, atol=1e-6)
    subsets = [s for k in range(1, 7) for s in itertools.combinations(range(6), k)]
    best = max(subsets, key=lambda s: score({"a": np.mean([params[i]["a"] for i in s], axis=0)}))
    assert set(soup.chosen) == set(best)


def test_an_equal_score_is_taken_and_a_lower_one_is_not():
    params = [{"a": np.full(2, value)} for value in (0.0, 1.0, 2.0)]
    by_candidate = {1: 5.0, 2: 4.9}
    soup = averaging.greedy_soup(
        [5.0, 5.0, 1.0], lambda index: params[index], lambda _, index: by_candidate[index]
    )
    assert soup.chosen == [0, 1]
    np.testing.assert_array_equal(soup.params["a"], [0.5, 0.5])


def test_the_hash_is_that_of_the_values_wherever_they_are():
    params = random_params(0)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    placed = {
        "tower": {"kernel": jax.device_put(params["tower"]["kernel"], rows)},
        "logit_scale": params["logit_scale"],
    }
    assert averaging.sha256(placed) == averaging.sha256(params)
    changed = random_params(0)
    changed["tower"]["kernel"][3, 5] = np.nextafter(changed["tower"]["kernel"][3, 5], 9)
    assert averaging.sha256(changed) != averaging.sha256(params)
    renamed = {"head": params["tower"], "logit_scale": params["logit_scale"]}
    assert averaging.sha256(renamed) != averaging.sha256(params)
