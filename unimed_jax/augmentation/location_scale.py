"""Location-scale augmentation: random intensity curves for the image or for each class.

SLAug (arXiv 2211.05868): the global variant (GLA) draws one curve for all pixels. The local variant
(LLA) draws one for the pixels of each class, which decouples the brightness of a structure from its
class.
"""

import jax
import jax.numpy as jnp
import numpy as np

NUM_SAMPLES = 1000  # points of a curve, with linear interpolation between them
BACKGROUND_VALUE = 0.01  # pixels up to this value are not tissue and stay unchanged


def bezier_table(
    inner: jax.Array, low: jax.Array, high: jax.Array, inverse: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Samples a cubic Bezier curve from (high, high) to (low, low) as a table x -> y.

    point(t) = sum_i C(3, i) t^(3-i) (1-t)^i P_i for t from 0 to 1, with P_0 = (low, low) and P_3 =
    (high, high). x is sorted. y is sorted as well (an increasing map), unless ``inverse`` is True:
    then it keeps the order of the curve, from high to low.

    Args:
      inner: P_1 and P_2, float (2, 2).
      low: smallest value, a scalar.
      high: largest value, a scalar.
      inverse: bool scalar.

    Returns:
      x and y, float32 (NUM_SAMPLES,), x ascending.
    """
    t = jnp.linspace(0.0, 1.0, NUM_SAMPLES)[:, None]
    points = jnp.stack([jnp.stack([low, low]), inner[0], inner[1], jnp.stack([high, high])])
    weights = jnp.concatenate(
        [t**3, 3 * t**2 * (1 - t), 3 * t * (1 - t) ** 2, (1 - t) ** 3], axis=1
    )
    x, y = jnp.matmul(weights, points, precision="highest").T
    return jnp.sort(x), jnp.where(inverse, y, jnp.sort(y))


def quantiles(values: jax.Array, where: jax.Array, q: tuple[float, ...]) -> jax.Array:
    """Quantiles of masked values, with linear interpolation as in NumPy.

    Order statistics come from a bisection over bit patterns, which have the same order as
    non-negative floats. The 31 counts are exact and several times faster than a sort.

    Args:
      values: float32, at least 0.
      where: bool mask of the same shape.
      q: quantiles, in 0..1.

    Returns:
      float32 (len(q),); 0 if the mask is empty.
    """
    position = jnp.array(q) * (jnp.sum(where) - 1)
    rank = jnp.stack([jnp.floor(position), jnp.ceil(position)], axis=-1).astype(jnp.int32)
    bits = jax.lax.bitcast_convert_type(jnp.where(where, values, jnp.inf), jnp.int32).ravel()

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        reached = jnp.sum(bits <= middle[..., None], axis=-1) > rank
        return jnp.where(reached, low, middle + 1), jnp.where(reached, middle, high)

    largest = jnp.full(rank.shape, np.float32(np.inf).view(np.int32))
    bounds = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(rank), largest))
    neighbors = jax.lax.bitcast_convert_type(bounds[1], jnp.float32)
    part = position - jnp.floor(position)
    return jnp.where(
        part > 0, neighbors[:, 0] * (1 - part) + neighbors[:, 1] * part, neighbors[:, 0]
    )


def draw_map(
    key: jax.Array, values: jax.Array, where: jax.Array, inverse_probability: jax.Array | float
) -> jax.Array:
    """Applies a random curve, then a random location and scale, to masked values.

    The curve runs from the smallest to the largest masked value; its inner points are uniform in
    between. Then y = clip(alpha x + beta, 0, 1) with alpha = clip(N(1, 0.1), 0.9, 1.1) and
    beta = N(0, 0.5) clipped to [0 - q20, 1 - q80], where q20 and q80 are percentiles of the values
    after the curve.

    Args:
      key: random key.
      values: float32 of any shape, in 0..1.
      where: bool mask of the same shape; values outside stay unchanged.
      inverse_probability: probability of a decreasing curve (``inverse`` of ``bezier_table``).

    Returns:
      float32, the shape of ``values``.
    """
    keys = jax.random.split(key, 4)
    low = jnp.min(jnp.where(where, values, jnp.inf))
    high = jnp.max(jnp.where(where, values, -jnp.inf))
    empty = high < low
    low, high = jnp.where(empty, 0.0, low), jnp.where(empty, 1.0, high)
    inner = low + (high - low) * jax.random.uniform(keys[0], (2, 2))
    inverse = jax.random.bernoulli(keys[1], inverse_probability)
    curved = jnp.interp(values, *bezier_table(inner, low, high, inverse))
    curved = jnp.maximum(curved, 0.0)  # removes negative rounding errors
    q20, q80 = quantiles(curved, where, (0.2, 0.8))
    alpha = jnp.clip(1 + 0.1 * jax.random.normal(keys[2]), 0.9, 1.1)
    beta = jnp.clip(0.5 * jax.random.normal(keys[3]), -q20, 1 - q80)
    return jnp.where(where, jnp.clip(alpha * curved + beta, 0.0, 1.0), values)


def draw_global(key: jax.Array, image: jax.Array) -> jax.Array:
    """GLA: one increasing curve, one location and scale for the image (H, W, C)."""
    return draw_map(key, image, jnp.ones(image.shape, bool), 0.0)


def draw_local(key: jax.Array, image: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """LLA: a curve, location and scale for the pixels of each class.

    The curve of the background is always decreasing, that of a class with probability 1/2. Values
    up to ``BACKGROUND_VALUE`` stay unchanged.

    Args:
      key: random key.
      image: float32 (H, W, C).
      labels: int (H, W), 0 is the background.
      num_classes: number of classes besides the background.
    """
    values = jnp.arange(num_classes + 1)
    keys = jax.vmap(lambda label: jax.random.fold_in(key, label))(values)
    where = (labels == values[:, None, None])[..., None]
    where = jnp.broadcast_to(where, (len(values), *image.shape))
    inverse_probability = jnp.where(values == 0, 1.0, 0.5)
    mapped = jax.vmap(draw_map, in_axes=(0, None, 0, 0))(keys, image, where, inverse_probability)
    selected = jnp.take_along_axis(mapped, labels[None, ..., None], axis=0)[0]
    return jnp.where(image <= BACKGROUND_VALUE, image, selected)
