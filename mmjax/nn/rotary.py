"""Rotary position embedding, in the layout of Hugging Face's LLaMA."""

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, positions: jax.Array, base: float = 10000.0) -> jax.Array:
    """Turns each pair ``(x[i], x[i + h/2])`` by ``positions * base ** (-2i/h)``; angles in float32.

    Args:
      x: [b t n h], queries or keys.
      positions: i32[b t].
      base: 10000 in LLaMA 1 and 2.

    Source: arXiv 2104.09864, equation 34, with the halves (not neighbours) paired.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency  # [b t 1 h/2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
