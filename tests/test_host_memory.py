"""Memory that programs on CPUs keep from one call to the next."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from unimed_jax import host_memory
if sys.argv[1] == "keep":
    assert host_memory.keep()
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


def pages_mapped_by_a_call(mode: str, **environment: str) -> int:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        env={"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_a_program_finds_its_temporaries_mapped():
    pages = pages_mapped_by_a_call("give back", JAX_PLATFORMS="cpu")
    kept = pages_mapped_by_a_call("keep", JAX_PLATFORMS="cpu")
    assert pages > 1000  # else there is nothing to gain here
    assert kept < pages / 10


def test_nothing_is_changed_where_an_accelerator_is_asked_for():
    code = "from unimed_jax import host_memory; print(host_memory.keep())"
    environment = {"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "tpu,cpu"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == "False", result.stderr
