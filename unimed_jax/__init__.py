"""Medical vision-language pretraining in JAX. Importing this loads neither TensorFlow nor torch."""

from unimed_jax.version import __version__

__all__ = ["__version__"]
