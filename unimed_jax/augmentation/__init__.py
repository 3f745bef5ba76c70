"""Augmentation of images with masks, as JAX ops.

An image is float32 (H, W, C) with values in 0..1, its labels are integers (H, W); ``volumes`` has a
leading depth axis. Functions named ``draw_*`` take a random key; all others are deterministic. Each
draw of a record has its key (``row_keys``), so an augmented image does not depend on the batch or
the mesh.
"""

import jax
import numpy as np


def seed_words(seeds: np.ndarray) -> np.ndarray:
    """Seeds of draws, int64 (B, 2): 63 bits and a number -> uint32 (B, 3) for ``row_keys``."""
    key, draw = seeds.astype(np.uint64).T
    words = [key >> np.uint64(32), key & np.uint64(0xFFFFFFFF), draw & np.uint64(0xFFFFFFFF)]
    return np.stack(words, axis=1).astype(np.uint32)


def row_keys(seeds: jax.Array) -> jax.Array:
    """A random key per row from ``seed_words``: uint32 (B, 3) -> keys (B,)."""
    return jax.vmap(lambda s: jax.random.fold_in(jax.random.wrap_key_data(s[:2]), s[2]))(seeds)
