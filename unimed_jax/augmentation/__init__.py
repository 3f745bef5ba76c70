"""Augmentation of images with masks as JAX ops: what is drawn is apart from what is done with it.

An image is float32 (H, W, C) with values in 0..1, its labels are integers (H, W); `volumes` has one
more axis before. Functions named
``draw_*`` take a key; all others are the formulas. A key belongs to one visit of one record
(``row_keys``), so an augmented image does not depend on the batch or the mesh.
"""

import jax
import numpy as np


def seed_words(seeds: np.ndarray) -> np.ndarray:
    """The seeds of visits, int64 (B, 2) of 63 bits and a number, as `row_keys` takes them."""
    key, visit = seeds.astype(np.uint64).T
    words = [key >> np.uint64(32), key & np.uint64(0xFFFFFFFF), visit & np.uint64(0xFFFFFFFF)]
    return np.stack(words, axis=1).astype(np.uint32)


def row_keys(seeds: jax.Array) -> jax.Array:
    """A key per row from the seed of its visit: uint32 (B, 3) -> keys (B,)."""
    return jax.vmap(lambda s: jax.random.fold_in(jax.random.wrap_key_data(s[:2]), s[2]))(seeds)
