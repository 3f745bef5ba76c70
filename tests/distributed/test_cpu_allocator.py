"""The allocator settings for programs on CPUs."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from unimed_jax.distributed import cpu_allocator
if sys.argv[1] == "tune":
    assert cpu_allocator.tune_malloc()
import jax
import jax.numpy as jnp

@jax.jit
def step(x):  # a temporary of 64 MiB
    return jnp.sum((x @ x.T) @ x)

x = jnp.ones((4096, 8))
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(code: str, *arguments: str, platforms: str) -> str:
    """What a Python process prints."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": platforms},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries lack mallopt")
def test_a_program_finds_its_temporaries_mapped():
    pages, kept = (int(run(PROGRAM, mode, platforms="cpu")) for mode in ("give back", "tune"))
    assert pages > 1000  # else there is nothing to gain here
    assert kept < pages / 10


def test_a_plugin_counts_only_with_its_device(tmp_path):
    code = """
import pathlib, sys
from unimed_jax.distributed import cpu_allocator
folder = pathlib.Path(sys.argv[1])
(folder / "libtpu.py").touch()
sys.path.insert(0, str(folder))
cpu_allocator._DEVICES = {"libtpu": (f"{folder}/accel[0-9]*",)}
print(cpu_allocator._on_cpus())
(folder / "accel0").touch()
print(cpu_allocator._on_cpus())
"""
    assert run(code, str(tmp_path), platforms="").split() == ["True", "False"]


def test_nothing_is_changed_where_an_accelerator_is_asked_for():
    code = "from unimed_jax.distributed import cpu_allocator; print(cpu_allocator.tune_malloc())"
    assert run(code, platforms="tpu,cpu") == "False"
