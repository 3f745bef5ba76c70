"""Compiler options of XLA, by platform."""

import functools

import jax
from jax.sharding import Mesh

# jaxlib 0.10 uses YNNPACK for most operations. Reductions are up to nine times as fast with it, but
# matrix products and convolutions are slower than with Eigen: 91 instead of 107 GFLOP/s on a core
# of a Zen 4 (docs/log/performance.md).
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def options(mesh: Mesh) -> dict[str, str] | None:
    """``compiler_options`` of `jax.jit` for programs that run on the devices of ``mesh``."""
    return _known_on_cpu() if mesh.devices.flat[0].platform == "cpu" else None


def one_shot_options(mesh: Mesh) -> dict[str, int] | None:
    """``compiler_options`` of a program that runs once, such as the initialization of parameters.

    On a CPU, full optimization takes several times as long as it saves.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 1} if on_cpu else None


@functools.cache
def _known_on_cpu() -> dict[str, str] | None:
    """The options; None for a version of jaxlib that does not know them."""
    one = jax.ShapeDtypeStruct((), "float32")
    try:
        jax.jit(lambda x: x, compiler_options=_CPU).lower(one).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _CPU
