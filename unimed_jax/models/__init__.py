"""Networks as pure functions of nested dicts of arrays; backbones are listed in ``registry``.

Only this package knows flax.nnx.
"""
