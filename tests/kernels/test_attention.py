"""Attention against a softmax written down in numpy; every implementation against that of XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from mmjax.kernels.attention import attention, noted
from mmjax.kernels.decoding import decode_attention
from mmjax.parallel.mesh import AXES, make_mesh


def plain(query, key, value, *, causal, query_segments=None, key_segments=None, scale=None):
    """One row, one head, one query at a time, in float64."""
    (b, t, n, h), (_, s, k, _) = query.shape, key.shape
    out = np.zeros(query.shape)
    for row, i, head in np.ndindex(b, t, n):
        seen = np.ones(s, bool)
        if causal:
            seen &= np.arange(s) <= i + s - t
        if query_segments is not None:
            seen &= (key_segments[row] == query_segments[row, i]) & (key_segments[row] > 0)
        if not seen.any():
            continue
        group = head // (n // k)
        scores = key[row, seen, group].astype(float) @ query[row, i, head].astype(float)
        scores *= h**-0.5 if scale is None else scale
        weights = np.exp(scores - scores.max())
        out[row, i, head] = weights @ value[row, seen, group] / weights.sum()
    return out


def tensors(*, b=2, t, s, n=2, k=None, h, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return normal(b, t, n, h), normal(b, s, k or n, h), normal(b, s, k or n, h)


def padded(b, t, s, left, right):
    """Segments of a text of s places with pads on both sides, and of its last t places."""
    keys = np.ones((b, s), np.int32)
    for row in range(b):
        keys[row, : left[row]] = 0
        keys[row, s - right[row] :] = 0
    return keys[:, s - t :], keys


CASES = {
    "full": dict(t=5, s=5),
    "causal": dict(t=5, s=5, causal=True),
    "continuation": dict(t=3, s=7, causal=True),
    "one query": dict(t=1, s=6, causal=True),
    "grouped heads": dict(t=4, s=6, n=6, k=2, causal=True),
    "padded": dict(t=5, s=5, pads=([0, 2], [1, 0])),
    "padded continuation": dict(t=3, s=7, n=4, k=2, causal=True, pads=([0, 2], [1, 0])),
    "scores as they are": dict(t=5, s=5, causal=True, scale=1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_xla_against_numpy(name):
    case = dict(causal=False, pads=None, scale=None) | CASES[name]
    causal, pads, scale = case.pop("causal"), case.pop("pads"), case.pop("scale")
    qkv = tensors(**case, h=4)
    segments = (None, None) if pads is None else padded(2, case["t"], case["s"], *pads)
    options = dict(causal=causal, query_segments=segments[0], key_segments=segments[1])
    options["scale"] = scale
    out = attention(*map(jnp.asarray, qkv), **options, implementation="xla")
    real = np.ones(out.shape[:2], bool) if pads is None else segments[0] > 0
    np.testing.assert_allclose(out[real], plain(*qkv, **options)[real], atol=1e-5)
    assert np.isfinite(out).all()  # what comes out for pads means nothing, but must not spoil a sum
    np.testing.assert_array_equal(
        out, attention(*map(jnp.asarray, qkv), **options)
    )  # auto, on a CPU


def test_packed_texts_do_not_see_each_other():
    qkv = tensors(t=6, s=6, h=4)
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 3, 3]], np.int32)
    options = dict(causal=True, query_segments=segments, key_segments=segments)
    out = attention(*map(jnp.asarray, qkv), **options)
    np.testing.assert_allclose(out[segments > 0], plain(*qkv, **options)[segments > 0], atol=1e-5)
    alone = attention(*(jnp.asarray(x[:1, 3:5]) for x in qkv), causal=True)
    np.testing.assert_allclose(out[0, 3:5], alone[0], atol=1e-5)


def test_the_softmax_is_in_float32():
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in tensors(t=4, s=512, h=8))
    out = attention(query, key, value, causal=False)
    assert out.dtype == jnp.bfloat16
    exact = plain(*(np.asarray(x, np.float32) for x in (query, key, value)), causal=False)
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=2e-3)


def test_float16_scores_may_be_larger_than_its_largest_number():
    """Rows of pads included: nothing in between is -inf or NaN, and neither is a gradient."""
    query, key, value = (
        jnp.asarray(x, jnp.float16) * scale
        for x, scale in zip(tensors(t=6, s=6, h=64), (400, 200, 1), strict=True)
    )
    scores = np.einsum("btnh,bsnh->bnts", *(np.asarray(x, np.float32) for x in (query, key)))
    assert np.abs(scores).max() > np.finfo(np.float16).max
    segments = padded(2, 6, 6, [0, 2], [1, 6])[1]
    options = dict(causal=True, query_segments=segments, key_segments=segments)
    out = attention(query, key, value, **options)
    assert out.dtype == jnp.float16 and np.isfinite(out).all()
    exact = plain(*(np.asarray(x, np.float32) for x in (query, key, value)), **options)
    real = segments > 0
    np.testing.assert_allclose(np.asarray(out)[real], exact[real], atol=2e-3)
    loss = lambda *qkv: attention(*qkv, **options).astype(jnp.float32).sum()  # noqa: E731
    for grad in jax.grad(loss, (0, 1, 2))(query, key, value):
        assert grad.dtype == jnp.float16 and np.isfinite(grad).all()


SPLASH = {
    "causal": dict(t=128, s=128, causal=True),
    "padded continuation, grouped heads": dict(
        t=128, s=256, n=4, k=2, causal=True, pads=([0, 90], [60, 0])
    ),
    "scores as they are": dict(t=128, s=128, causal=True, scale=0.2),
    "narrow heads, a picture's places": dict(t=197, s=197, h=64, causal=False),
    "heads of EVA ViT": dict(t=130, s=130, h=88, causal=True),
    "odd lengths of a continuation": dict(t=70, s=201, h=64, causal=True, pads=([0, 9], [60, 0])),
    "one key head": dict(t=256, s=256, n=2, k=1, causal=False, pads=([10, 0], [0, 130])),
}


@pytest.mark.parametrize("name", SPLASH)
def test_splash_is_xla(name):
    """Values and gradients; on a CPU the kernel is interpreted."""
    case = dict(pads=None, scale=None) | SPLASH[name]
    causal, pads, scale = case.pop("causal"), case.pop("pads"), case.pop("scale")
    qkv = tuple(map(jnp.asarray, tensors(**dict(h=128) | case)))
    segments = (None, None) if pads is None else padded(2, case["t"], case["s"], *pads)
    real = np.ones((2, case["t"], 1, 1)) if pads is None else (segments[0] > 0)[..., None, None]
    pull = real * np.random.default_rng(1).normal(size=qkv[0].shape).astype(np.float32)

    def run(implementation, *qkv):
        out = attention(
            *qkv,
            causal=causal,
            query_segments=segments[0],
            key_segments=segments[1],
            scale=scale,
            implementation=implementation,
        )
        return (out * pull).sum(), out * real

    def compute(implementation):
        loss = functools.partial(run, implementation)
        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)

    (grads, out), (wanted_grads, wanted) = compute("splash"), compute("xla")
    np.testing.assert_allclose(out, wanted, atol=2e-5)
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        np.testing.assert_allclose(grad, wanted_grad, atol=1e-4)


def test_splash_on_a_mesh():
    """Rows and heads spread over devices, key heads too."""
    qkv = tuple(map(jnp.asarray, tensors(b=4, t=128, s=128, n=4, k=2, h=128)))
    segments = padded(4, 128, 128, [0, 5, 0, 9], [0, 0, 70, 1])[1]
    options = dict(causal=True, query_segments=segments, key_segments=segments)
    wanted = attention(*qkv, **options, implementation="xla")
    with jax.set_mesh(make_mesh(2, 2, 2)):
        out = jax.jit(functools.partial(attention, **options, implementation="splash"))(*qkv)
    real = segments > 0
    np.testing.assert_allclose(np.asarray(out)[real], np.asarray(wanted)[real], atol=2e-5)


@pytest.mark.parametrize("implementation", ["splash", "auto"])
def test_lowering_for_a_tpu_that_is_not_there(implementation):
    """The mesh says what the program is for; the default device, a CPU, does not."""
    device = jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    mesh = AbstractMesh((2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for shape in [(4, 128, 4, 128), *[(4, 256, 2, 128)] * 2]
    ]

    def loss(query, key, value):
        segments = jnp.ones((4, 256), jnp.int32)
        return attention(
            query,
            key,
            value,
            causal=True,
            query_segments=segments[:, 128:],
            key_segments=segments,
            implementation=implementation,
        ).sum()

    with jax.sharding.use_abstract_mesh(mesh):
        text = jax.export.export(jax.jit(jax.grad(loss)), platforms=["tpu"])(*shapes).mlir_module()
    assert "tpu_custom_call" in text


@pytest.mark.parametrize(
    ("changes", "implementation", "match"),
    [
        (dict(), "flash", "'flash' is none of auto, xla, cudnn, splash"),
        (dict(dtype=np.float16), "splash", r"queries \(2, 128, 2, 128\).* in float16"),
    ],
)
def test_what_does_not_fit_is_refused(changes, implementation, match):
    dtype = changes.pop("dtype", np.float32)
    qkv = tensors(**dict(t=128, s=128, h=128) | changes)
    query, key, value = (x.astype(dtype) for x in qkv)
    with pytest.raises(ValueError, match=match):
        attention(query, key, value, causal=False, implementation=implementation)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        (dict(b=3), "3 rows do not divide by data x fsdp = 4"),
        (dict(b=4, n=3), "3 key heads do not divide by tensor = 2"),
    ],
)
def test_splash_must_divide_over_the_mesh(shape, match):
    query, key, value = tensors(**shape, t=128, s=128, h=128)
    with jax.set_mesh(make_mesh(2, 2, 2)), pytest.raises(ValueError, match=match):
        attention(query, key, value, causal=True, implementation="splash")


def test_segments_come_in_pairs():
    query, key, value = tensors(t=4, s=4, h=4)
    with pytest.raises(ValueError, match="both queries and keys"):
        attention(query, key, value, causal=True, key_segments=np.ones((2, 4), np.int32))


def on(kind: str, platform: str):
    """A mesh of one device that is not here."""
    device = jax.sharding.AbstractDevice(kind, num_cores=1, platform=platform)
    axis_types = (AxisType.Auto,) * 3
    mesh = AbstractMesh((1, 1, 1), AXES, axis_types=axis_types, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize(
    ("platform", "shape", "dtype", "bias", "line"),
    [
        ("tpu", dict(t=70, s=256, h=64), "bfloat16", False, "70 x 256: splash"),
        ("tpu", dict(t=32, s=257, h=64), "bfloat16", False,
         "32 x 257: xla (splash is for more than 64 places, here are 32)"),
        ("tpu", dict(t=70, s=70, h=64), "float16", False,
         "70 x 70: xla (not splash: TPUs do not compute in float16)"),
        ("tpu", dict(t=70, s=70, h=64), "bfloat16", True, "70 x 70: xla (only it takes a bias)"),
        ("gpu", dict(t=4, s=6, h=64), "bfloat16", False, "4 x 6: cudnn"),
        ("gpu", dict(t=4, s=6, h=64), "float32", False,
         "4 x 6: xla (cudnn does not take float32)"),
        ("gpu", dict(t=4, s=6, h=12), "float16", False,
         "4 x 6: xla (cudnn takes heads of 8, 16, ... 128, not 12)"),
        ("gpu", dict(t=1, s=6, h=64), "float16", False,
         "1 x 6: xla (one query is not worth a kernel)"),
        ("cpu", dict(t=4, s=6, h=64), "float32", False, "4 x 6: xla (cpu)"),
    ],
)  # fmt: skip
def test_what_was_chosen_is_noted_with_the_reason(platform, shape, dtype, bias, line, monkeypatch):
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda query, *_, **__: query)
    qkv = [jnp.asarray(x, dtype) for x in tensors(**shape)]
    options = dict(bias=jnp.zeros((2, shape["t"], shape["s"]))) if bias else {}
    run = functools.partial(attention, causal=False, **options)
    with on("anything", platform), noted() as choices:
        for _ in range(2):
            jax.eval_shape(lambda *x: run(*x), *qkv)
    assert list(choices) == [f"test_attention {line}"], "once, under the caller's name"
    with noted() as choices:
        attention(*qkv, causal=False, implementation="xla")
    assert list(choices) == [f"test_attention {line.split(':')[0]}: xla (as asked for)"]


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [("8.0", "cudnn"), ("7.0", "xla"), ("gfx90a", "xla")],
    ids=["A100", "V100", "another maker's"],
)
def test_cudnn_is_for_gpus_that_it_knows(capability, chosen, monkeypatch):
    class Gpu:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Gpu()])
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda query, *_, **__: query)
    qkv = [jnp.asarray(x, jnp.bfloat16) for x in tensors(t=4, s=6, h=64)]
    with on("anything", "gpu"), noted() as choices:
        jax.eval_shape(functools.partial(attention, causal=False), *qkv)
    (line,) = choices
    assert f": {chosen}" in line


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize(("t", "s"), [(3, 7), (4, 7), (5, 6)])
def test_cudnn_is_given_even_lengths(t, s, segmented, monkeypatch):
    """Its backward pass takes no others; what fills them up changes nothing."""
    real, lengths = jax.nn.dot_product_attention, []

    def stand_in(query, key, value, *, implementation, **options):
        assert implementation == "cudnn"
        lengths.extend([query.shape[1], key.shape[1], value.shape[1]])
        return real(query, key, value, **options)

    qkv = [jnp.asarray(x) for x in tensors(t=t, s=s, h=8)]
    options = dict(causal=True)
    if segmented:
        queries, keys = padded(2, t, s, [0, 1], [1, 0])
        options |= dict(query_segments=queries, key_segments=keys)

    def total(implementation, *qkv):
        out = attention(*qkv, **options, implementation=implementation)
        return out[options["query_segments"] > 0].sum() if segmented else out.sum()

    both = jax.value_and_grad(total, argnums=(1, 2, 3))
    wanted = both("xla", *qkv)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    got = both("cudnn", *qkv)
    assert not any(length % 2 for length in lengths)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, wanted)


def test_one_query_is_noted_too():
    cache = jnp.ones((1, 2, 5, 4)), jnp.ones((1, 2, 5, 4)), jnp.ones((1, 5), bool)
    new = jnp.ones((1, 2, 3, 4)), jnp.ones((1, 2, 3, 4)), jnp.ones(3, bool)
    with noted() as choices:
        decode_attention(jnp.ones((1, 1, 2, 4)), cache, new)
    assert list(choices) == ["test_attention 1 x 8: xla (one query reads the cache as it lies)"]
