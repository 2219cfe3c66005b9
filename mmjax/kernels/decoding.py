"""Attention of one new token to a prompt and to what was generated after it.

Bound by memory: every key and value is read once, a prompt's for all of its copies together.
"""

import jax
import jax.numpy as jnp

from mmjax.kernels.attention import note, platform


def copies_layers() -> bool:
    """Whether a product with one layer of a stack copies it first: XLA does so for CPUs and GPUs;
    for TPUs the product reads the stack (seen in programs compiled for all three)."""
    return platform() != "tpu"


def decode_attention(
    query: jax.Array,
    prompt: tuple[jax.Array, jax.Array, jax.Array],
    new: tuple[jax.Array, jax.Array, jax.Array],
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """Softmax over both together, in float32; key heads are shared by groups of query heads.

    Args:
      query: [n 1 heads h] of n = b x c rows, copies of a prompt next to each other.
      prompt: keys and values [b k s h], bool[b s] which are to be seen.
      new: keys and values [n k r h], bool[r].
      bias: f32[n heads 1 s+r], added to the scores; None = nothing.
      scale: of the scores; None = 1 / sqrt(h).

    Returns:
      [n 1 heads h].
    """
    (n, _, heads, h), dtype = query.shape, query.dtype
    b, k, s, _ = prompt[0].shape
    note(1, s + len(new[2]), "xla", "one query reads the cache as it lies")
    scale = h**-0.5 if scale is None else scale
    if dtype == jnp.float16:  # only GPUs sum its products in float32
        query = query.astype(jnp.float32)
        prompt, new = (
            (*(x.astype(jnp.float32) for x in part[:2]), part[2]) for part in (prompt, new)
        )
    query = query.reshape(n, k, heads // k, h)
    copies = query.reshape(b, n // b, k, heads // k, h)
    wide = dict(preferred_element_type=jnp.float32)
    before = jnp.einsum("bckgh,bksh->bckgs", copies, prompt[0], **wide).reshape(n, k, -1, s)
    after = jnp.einsum("nkgh,nkrh->nkgr", query, new[0], **wide)
    scores = scale * jnp.concatenate([before, after], axis=-1)
    if bias is not None:
        scores += bias.reshape(n, k, heads // k, -1)
    seen = jnp.repeat(prompt[2], n // b, axis=0)
    seen = jnp.concatenate([seen, jnp.broadcast_to(new[2], (n, len(new[2])))], axis=1)
    scores = jnp.where(seen[:, None, None], scores, -jnp.inf)  # the new token sees itself
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    before, after = weights[..., :s].reshape(*copies.shape[:-1], s), weights[..., s:]
    out = jnp.einsum("bckgs,bksh->bckgh", before, prompt[1], **wide).reshape(query.shape)
    out += jnp.einsum("nkgr,nkrh->nkgh", after, new[1], **wide)
    return out.reshape(n, 1, heads, h).astype(dtype)
