"""What the compiler is asked for, by platform."""

import functools

import jax
from jax.sharding import Mesh

# jaxlib 0.10 takes YNNPACK for most operations. Sums are up to nine times as fast with it, matrix
# products and convolutions slower than with Eigen: 91 instead of 107 GFLOP/s on a core of a Zen 4
# (docs/log/performance.md).
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def options(mesh: Mesh) -> dict[str, str] | None:
    """``compiler_options`` of `jax.jit` for programs that run on the devices of ``mesh``."""
    return _known_on_cpu() if mesh.devices.flat[0].platform == "cpu" else None


def options_once(mesh: Mesh) -> dict[str, int] | None:
    """The same for a program that runs once: on a CPU the compiler takes several times as long for
    random parameters as it saves."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 1} if on_cpu else None


@functools.cache
def _known_on_cpu() -> dict[str, str] | None:
    """The options, or None for a version of jaxlib that does not have them (any more)."""
    one = jax.ShapeDtypeStruct((), "float32")
    try:
        jax.jit(lambda x: x, compiler_options=_CPU).lower(one).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _CPU
