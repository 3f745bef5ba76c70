"""Medical vision-language pretraining in JAX. Importing this loads neither TensorFlow nor torch."""

from typing import TYPE_CHECKING, Any

import input_pipeline  # noqa: F401  (prepares the process for TensorFlow, without importing it)
from unimed_jax.version import __version__

if TYPE_CHECKING:
    from unimed_jax.inference.dual_encoder import load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Imports ``load`` on first use, as JAX and Orbax take seconds to import."""
    if name == "load":
        from unimed_jax.inference.dual_encoder import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
