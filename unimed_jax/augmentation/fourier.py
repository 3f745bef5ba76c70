"""Fourier amplitude mixing: an image with the low frequencies' amplitude of another.

The style of an image is in the amplitude of its low frequencies, its content in the phase (FDA,
arXiv 2004.05498; as CCSDG uses it).
"""

import jax
import jax.numpy as jnp


def mix_amplitude(image: jax.Array, partner: jax.Array, share: jax.Array) -> jax.Array:
    """Takes the amplitude of ``partner`` at the frequencies |fy| <= floor(H share), |fx| <=
    floor(W share) (whole cycles per image), and keeps the phase.

    Args:
      image, partner: float32 (H, W, C).
      share: float32 ().

    Returns:
      float32 (H, W, C); may leave 0..1 a little.
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
    """round(0.05 + 0.1 U(0, 1), 2)."""
    return jnp.round(0.05 + 0.1 * jax.random.uniform(key), 2)
