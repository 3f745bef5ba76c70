"""Fourier amplitude mixing: transfers the style of one image to another.

The amplitude of the low frequencies carries the style of an image, the phase its content (FDA,
arXiv 2004.05498, with the settings of CCSDG).
"""

import jax
import jax.numpy as jnp


def mix_amplitude(image: jax.Array, partner: jax.Array, share: jax.Array) -> jax.Array:
    """Replaces the low-frequency amplitude of an image by that of another; keeps the phase.

    Low frequencies are |fy| <= floor(H share) and |fx| <= floor(W share), in cycles per image.

    Args:
      image: float32 (H, W, C).
      partner: float32 (H, W, C), the image that gives the amplitude.
      share: float32 (), share of the frequencies.

    Returns:
      float32 (H, W, C); may leave 0..1 slightly.
    """
    spectrum = jnp.fft.fft2(image, axes=(0, 1))
    other = jnp.fft.fft2(partner, axes=(0, 1))
    rows, columns = (
        jnp.abs(jnp.fft.fftfreq(n) * n).round() <= jnp.floor(n * share) for n in image.shape[:2]
    )
    low = (rows[:, None] & columns[None, :])[..., None]
    amplitude = jnp.where(low, jnp.abs(other), jnp.abs(spectrum))
    mixed = amplitude * jnp.exp(1j * jnp.angle(spectrum))
    return jnp.fft.ifft2(mixed, axes=(0, 1)).real


def draw_share(key: jax.Array) -> jax.Array:
    """Random ``share`` of ``mix_amplitude``: round(0.05 + 0.1 U(0, 1), 2)."""
    return jnp.round(0.05 + 0.1 * jax.random.uniform(key), 2)
