"""The dual encoder: `dual_encoder.build(config.model)` gives pure functions on plain dicts.

Only this package knows flax.nnx.
"""
