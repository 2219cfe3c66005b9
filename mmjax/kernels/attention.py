"""The one dispatch of attention: xla | cudnn | splash. The only file that asks for the platform."""

import contextlib
import contextvars
import functools
import re
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mmjax.parallel.sharding import shard_attention, shard_obstacle

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")

_noted: contextvars.ContextVar[dict[str, None] | None] = contextvars.ContextVar("noted")


@contextlib.contextmanager
def noted() -> Iterator[dict[str, None]]:
    """Collects a line, as a key, for every kind of attention that is traced inside (not what was
    compiled before): the network, which has a file of its own, the lengths, the kernel it got, and
    why not a faster one."""
    choices: dict[str, None] = {}
    token = _noted.set(choices)
    try:
        yield choices
    finally:
        _noted.reset(token)


def note(num_queries: int, num_keys: int, implementation: str, reason: str | None) -> None:
    """For `noted`, of the function that calls the one that calls this."""
    if (choices := _noted.get(None)) is None:
        return
    caller = sys._getframe(2).f_globals["__name__"].rpartition(".")[2]
    line = f"{caller} {num_queries} x {num_keys}: {implementation}"
    choices[line + (f" ({reason})" if reason else "")] = None


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Softmax attention, the softmax in float32; key heads are shared by groups of query heads.

    A query sees the keys of its own segment. Segment 0 is padding: its keys are seen by nobody
    else, and what comes out for its queries means nothing. With ``causal`` the last query stands at
    the last key, so that a continuation (t < s) sees all of what it continues:

        t = 2, s = 4   x x x .      (a left-padded prefix hides its pads by segment,
                       x x x x       so the cut is one index for all rows)

    Args:
      query: [b t n h].
      key, value: [b s k h], n a multiple of k.
      causal: whether a query sees only keys up to its own place.
      query_segments, key_segments: i32[b t] and i32[b s], or both None: nothing is padded.
      bias: added to the scores: [n t s] those of every row, or [b n t s] (t can be 1: the same for
        every query); None = nothing. xla alone takes one.
      scale: of the scores, before the bias; None = 1 / sqrt(h).
      implementation: ``auto`` takes splash on a TPU and cudnn on a GPU where they apply, else xla.

    Returns:
      [b t n h].

    Raises:
      ValueError: an implementation that does not exist, or that this shape or dtype rules out.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}"
        )
    if (query_segments is None) != (key_segments is None):
        raise ValueError("give segments of both queries and keys, or of neither")
    if bias is not None and implementation not in ("auto", "xla"):
        raise ValueError(f"{implementation} attention takes no bias; give 'xla' or 'auto'")
    reason = "as asked for"
    if implementation == "auto":
        implementation, reason = _choose(query, key, bias)
    note(query.shape[1], key.shape[1], implementation, reason)
    if implementation == "splash":
        if reason := _splash_obstacle(query, key):
            raise ValueError(
                f"splash attention cannot take queries {query.shape}, keys {key.shape}: {reason}"
            )
        (_, t, _, h), s = query.shape, key.shape[1]
        scale = h**-0.5 if scale is None else scale
        options = dict(scale=scale, offset=s - t if causal else None)
        options["interpret"] = platform() == "cpu"
        kernel = functools.partial(_splash, **options)
        given = _filled_up(query, key, value, query_segments, key_segments)
        return shard_attention(kernel, *given)[:, : query.shape[1], :, : query.shape[-1]]
    mask = _mask(query, key, causal, query_segments, key_segments)
    bias = bias[None] if bias is not None and bias.ndim == 3 else bias
    if implementation == "cudnn":
        length = query.shape[1]
        query, key, value, mask = _even(query, key, value, mask)
        out = jax.nn.dot_product_attention(
            query, key, value, mask=mask, scale=scale, implementation="cudnn"
        )
        return out[:, :length]
    more = dict(bias=bias, mask=mask, scale=scale, implementation="xla")
    if query.dtype == jnp.float16 and platform() != "gpu":
        # JAX wants float16 products summed in float32, which it has for GPUs only.
        wide = (x.astype(jnp.float32) for x in (query, key, value))
        out = jax.nn.dot_product_attention(*wide, **more)
        return out.astype(jnp.float16)
    return jax.nn.dot_product_attention(query, key, value, **more)


def platform() -> str:
    """Of the mesh's devices, which need not be here (compiling ahead of time); without a mesh, of
    the default ones."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _choose(query: jax.Array, key: jax.Array, bias: jax.Array | None) -> tuple[str, str | None]:
    """(implementation, why not the platform's fast one)."""
    where = platform()
    if where not in ("tpu", "gpu"):
        return "xla", where
    if bias is not None:
        return "xla", "only it takes a bias"
    if where == "tpu":
        # Of short texts the fillings would be most of the work.
        if (shorter := min(query.shape[1], key.shape[1])) <= _SPLASH_BLOCK // 2:
            return "xla", f"splash is for more than {_SPLASH_BLOCK // 2} places, here are {shorter}"
        reason = _splash_obstacle(query, key)
        return ("xla", f"not splash: {reason}") if reason else ("splash", None)
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return "xla", f"cudnn does not take {query.dtype}"
    if query.shape[1] == 1:
        return "xla", "one query is not worth a kernel"
    if _capability() < 8:
        return "xla", "cudnn is for GPUs from compute capability 8.0 (A100) on"
    if (h := query.shape[-1]) % 8 or h > 128:
        return "xla", f"cudnn takes heads of 8, 16, ... 128, not {h}"
    return "cudnn", None


def _capability() -> float:
    """Of this machine's GPUs, 0 if they are not NVIDIA's; that of an H100 where there are none:
    then programs are compiled for other machines."""
    if jax.default_backend() != "gpu":
        return 9.0
    text = str(getattr(jax.devices()[0], "compute_capability", ""))
    return float(text) if re.fullmatch(r"\d+\.\d+", text) else 0.0


def _even(query, key, value, mask) -> tuple:
    """Lengths made even by a place that nobody sees: cuDNN's backward pass wants that."""
    t, s = query.shape[1] % 2, key.shape[1] % 2
    if not t and not s:
        return query, key, value, mask
    if mask is None:
        mask = jnp.ones((1, 1, query.shape[1], key.shape[1]), bool)
    longer = lambda x, more: jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))  # noqa: E731
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, t), (0, s)))
    return longer(query, t), longer(key, s), longer(value, s), mask


def _mask(query, key, causal, query_segments, key_segments) -> jax.Array | None:
    """bool[b or 1, 1, t, s], or None where every query sees every key."""
    t, s = query.shape[1], key.shape[1]
    mask = None
    if causal and t > 1:  # one query at the end sees all keys
        mask = jnp.tril(jnp.ones((t, s), bool), k=s - t)[None, None]
    if query_segments is not None:
        same = (query_segments[:, :, None] == key_segments[:, None, :]) & (
            key_segments[:, None, :] > 0
        )
        mask = same[:, None] if mask is None else mask & same[:, None]
    return mask


_SPLASH_BLOCK = 128


def _splash_obstacle(query: jax.Array, key: jax.Array) -> str | None:
    """Why the kernel cannot run, or None."""
    if query.dtype == jnp.float16:
        return "TPUs do not compute in float16"
    return shard_obstacle(query, key)


def _filled_up(query, key, value, query_segments, key_segments) -> tuple:
    """Lengths and head dimension filled up to multiples of a block: places by pads (segment 0),
    which real queries do not see, heads by zeros, which change no score."""
    (b, t, _, h), s = query.shape, key.shape[1]
    missing = lambda length: -length % _SPLASH_BLOCK  # noqa: E731
    if query_segments is None and (missing(t) or missing(s)):
        query_segments, key_segments = jnp.ones((b, t), jnp.int32), jnp.ones((b, s), jnp.int32)
    wide = lambda x: jnp.pad(x, ((0, 0), (0, missing(x.shape[1])), (0, 0), (0, missing(h))))  # noqa: E731
    query, key, value = map(wide, (query, key, value))
    if query_segments is not None:
        long = lambda x: jnp.pad(x, ((0, 0), (0, missing(x.shape[1]))))  # noqa: E731
        query_segments, key_segments = long(query_segments), long(key_segments)
    return query, key, value, query_segments, key_segments


def _splash(query, key, value, query_segments, key_segments, *, offset, scale, interpret):
    """One device's share: [b t n h] with n a multiple of the key heads. Query i sees keys up to i +
    ``offset``, or all."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, t, n, h), s = query.shape, key.shape[1]
    one = masks.FullMask((t, s)) if offset is None else masks.CausalMask((t, s), offset=offset)
    make = (
        splash.make_splash_mha_single_device
        if n == key.shape[2]
        else splash.make_splash_mqa_single_device
    )
    group = n // key.shape[2]
    heads = masks.MultiHeadMask([one] * (n if group == 1 else group))
    kernel = make(heads, interpret=interpret) if interpret else make(heads)
    query = query * scale
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))  # [b heads length h]

    def row(q, k, v, ids):
        if group == 1:
            return kernel(q, k, v, segment_ids=ids)
        grouped = q.reshape(-1, group, t, h)
        return jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=ids))(grouped, k, v).reshape(
            n, t, h
        )

    ids = None if query_segments is None else splash.SegmentIds(q=query_segments, kv=key_segments)
    return jax.vmap(row)(query, key, value, ids).swapaxes(1, 2).astype(query.dtype)
