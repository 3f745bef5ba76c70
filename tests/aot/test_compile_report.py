"""The report of a step that was compiled ahead of time.

With libtpu, found on sys.path or in the directory that the variable LIBTPU names, a small step is
compiled for a real topology; without it those tests are skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import ROOT, write_recipe

from input_pipeline.io.errors import UserError
from unimed_jax.aot import compile_report, hlo_cost
from unimed_jax.aot.compile_report import Variant
from unimed_jax.monitoring.hardware import CHIPS, Chip

INSTALLED = importlib.util.find_spec("libtpu") is not None
DIRECTORY = os.environ.get("LIBTPU", "")
with_libtpu = pytest.mark.skipif(
    not (INSTALLED or DIRECTORY),
    reason="libtpu is not there: pip install --target=DIR 'libtpu==0.0.42.*', and LIBTPU=DIR",
)


def report(recipe: Path, topology: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the command in a process of its own: libtpu is to stay out of this one."""
    return subprocess.run(
        [sys.executable, "tools/compile_report.py", f"--config={recipe}", f"--topology={topology}",
         *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), DIRECTORY])),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        },
        capture_output=True,
        text=True,
        timeout=900,
    )  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    """No corpus, and no tokenizer: neither is needed."""
    return write_recipe(tmp_path / "recipe.py", Path("/nonexistent"), batch_size=64)


# --- what needs no compiler -----------------------------------------------------------------------


def test_the_roofline_is_its_formula():
    chip = Chip(bf16_flops=100.0, hbm_gb=1, hbm_bandwidth=10.0, links=4, link_bandwidth=2.0)
    cost = hlo_cost.Cost(
        flops=150.0,
        matrix_unit_flops=200.0,
        memory_bytes=50.0,
        collective_bytes={"all-reduce": 16.0, "all-gather": 8.0, "collective-permute": 6.0},
        compiler_cycles=0.0,
    )
    found = compile_report.bounds(cost, chip, model_flops=800.0, batch_size=64, num_devices=8)
    assert found["roofline_seconds"] == {
        "compute": 2.0, "memory": 5.0, "network": 24 / 8 + 3, "bound": 6.0, "sum": 13.0,
    }  # fmt: skip
    assert found["bound_images_per_sec"] == 64 / 6
    assert found["bound_mfu"] == 800 / (6 * 8 * 100)


@pytest.mark.parametrize(
    ("message", "total"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (36.92G) exceeds available HBM (15.75G).",
            36.92,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 52.54G of 15.75G hbm. Exceeded hbm capacity by 36.79G.\n\nTotal",
            52.54,
        ),
        ("RESOURCE_EXHAUSTED: no words for it", None),
    ],
)
def test_refusals_are_read(message, total):
    found = compile_report.refusal(message)
    assert found["fits"] is False
    assert found["hbm_gib"] == {"total": total, "limit": total and 15.75}
    assert "RESOURCE" not in found["refusal"] and found["refusal"] in message


def test_variants_that_cannot_be_faster_are_known():
    base = Variant(data=4, fsdp=4, tensor=1, accumulate_steps=2, remat="dots")

    def other(**changes):
        return Variant(**{**vars(base), **changes})

    assert base.recomputes_less(other(remat="full"))
    assert base.recomputes_less(other(accumulate_steps=4))
    assert not base.recomputes_less(base)
    assert not base.recomputes_less(other(remat="none", accumulate_steps=4))
    assert not base.recomputes_less(other(remat="full", data=2, fsdp=8))


def test_variants_and_meshes(tiny_config):
    config = tiny_config(batch_size=16)
    meshes = compile_report.default_meshes(16)
    assert meshes == [(16, 1, 1), (4, 4, 1), (1, 16, 1)]
    found = list(compile_report.variants(config, 16, ["none", "full"], [1, 2], meshes))
    # 16 rows on 16 devices cannot be halved
    assert [(v.fsdp, v.accumulate_steps, v.remat) for v in found] == [
        (fsdp, 1, remat) for fsdp in (1, 4, 16) for remat in ("none", "full")
    ]
    applied = found[-1].apply(config)
    assert Variant.of(applied, 16) == found[-1]
    assert config.model.remat == "none"  # the original is as it was


def test_every_chip_of_the_known_topologies_has_figures():
    tpus = {name.split(":")[0] for name in compile_report.KNOWN_TOPOLOGIES.split()}
    assert tpus == {"v4", "v5e", "v5p", "v6e", "tpu7x"}
    for kind, chip in CHIPS.items():
        assert chip.bf16_flops > 1e14 and chip.hbm_bandwidth > 1e11
        assert (chip.links > 0 and chip.link_bandwidth > 0) == kind.startswith("TPU")


@pytest.mark.skipif(INSTALLED, reason="libtpu is installed")
def test_without_libtpu_the_command_says_what_to_install():
    with pytest.raises(UserError, match=r"not installed: pip install 'libtpu==[\d.]+\*'"):
        compile_report.topology_devices("v5e:4x4")


# --- what needs it --------------------------------------------------------------------------------


@with_libtpu
@pytest.mark.slow
def test_a_step_is_compiled_for_a_slice(recipe, tmp_path):
    path, text, program = (tmp_path / f"report.{kind}" for kind in ("json", "md", "hlo"))
    done = report(
        recipe, "v5e:2x2", f"--json={path}", f"--markdown={text}", f"--hlo={program}",
        "--config.mesh.fsdp=2", "--config.model.compute_dtype=bfloat16",
        *(f"--config.model.{tower}.{key}" for tower in ("visual", "text")
          for key in ("width=128", "heads=2")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(path.read_text())
    assert found["fits"] is True and found["refusal"] is None
    assert (found["num_chips"], found["batch_size"]) == (4, 64)
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    hbm = found["hbm_gib"]
    assert 0 < hbm["total"] < 0.5
    assert hbm["total"] == pytest.approx(sum(v for k, v in hbm.items() if k != "total"))
    # the attention kernels of two towers, forward and backward, in a loop of one layer each
    assert program.read_text().count('custom_call_target="tpu_custom_call"') >= 4
    assert 0.7 < found["compiled_over_model_flops"] < 1.3
    assert found["compiled_flops"] == pytest.approx(
        found["compiled_over_model_flops"] * found["model_flops"]
    )
    # the ring of the loss over 4 devices: 3 + 4 transfers there, 3 + 4 back
    assert found["collective_bytes"]["collective-permute"] > 0
    seconds = found["roofline_seconds"]
    assert seconds["bound"] == max(seconds[term] for term in ("compute", "memory", "network"))
    assert "v5e:2x2" in text.read_text() and "v5e:2x2" in done.stdout


@with_libtpu
@pytest.mark.slow
def test_text_buckets_are_reported_for_the_stated_captions(recipe, tmp_path):
    path = tmp_path / "report.json"
    done = report(
        recipe, "v5e:2x2", f"--json={path}", "--captions=5:0.75,24:0.25",
        "--config.model.text.buckets=(8,16,24)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(path.read_text())
    buckets = found["text_buckets"]
    assert buckets["shares_of_groups"] == [0.75, 0.0, 0.25]
    assert 0 < buckets["padding_saved"] < 0.5
    assert "of 4 groups 75% at 8, 0% at 16, 25% at 24 tokens" in done.stdout
    # the groups are embedded again in the backward pass
    assert 0.9 < found["compiled_over_model_flops"] < 1.4


@with_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_a_result(recipe, tmp_path):
    path = tmp_path / "report.json"
    done = report(
        recipe, "v5e:2x2", f"--json={path}", "--config.batch_size=32768",
        "--config.model.visual.width=512", "--config.model.visual.layers=12",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(path.read_text())
    assert found["fits"] is False
    assert "Ran out of memory" in found["refusal"]
    assert found["hbm_gib"]["total"] > found["hbm_gib"]["limit"] == 15.75
    assert found["roofline_seconds"] is None


@with_libtpu
@pytest.mark.slow
def test_a_sweep_names_the_fastest_that_fits(recipe, tmp_path):
    path = tmp_path / "sweep.json"
    done = report(
        recipe, "v5e:2x2", "--sweep", "--remat=none,full", "--accumulate=1,2", "--meshes=4x1x1",
        f"--json={path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(path.read_text())
    # everything fits, so nothing that recomputes more has been compiled
    assert [(r["accumulate_steps"], r["remat"]) for r in found] == [(1, "none")]


@with_libtpu
def test_an_unknown_topology_is_named_with_those_that_are_known(recipe):
    done = report(recipe, "v5e:3x5")
    assert done.returncode == 2
    assert "'v5e:3x5'" in done.stderr and "v5e:4x4" in done.stderr
