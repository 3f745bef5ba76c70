"""Augmentation of images with masks as JAX ops: what is drawn is apart from what is done with it.

An image is float32 (H, W, C) with values in 0..1, its labels are integers (H, W). Functions named
``draw_*`` take a key; all others are the formulas. A key belongs to one visit of one record
(``row_keys``), so an augmented image does not depend on the batch or the mesh.
"""

import jax


def row_keys(seeds: jax.Array) -> jax.Array:
    """A key per row from the seed of its visit: uint32 (B, 3) -> keys (B,)."""
    return jax.vmap(lambda s: jax.random.fold_in(jax.random.wrap_key_data(s[:2]), s[2]))(seeds)
