"""Every op is undone by its inverse, bit for bit, and its shape maps tell the truth."""

import ml_dtypes
import numpy as np
import pytest
import torch

from conversion.ops import (
    IDENTITY,
    Conv,
    FrameTable,
    FusedBiases,
    FusedKernels,
    GrownRows,
    HeadwiseBiases,
    HeadwiseKernels,
    Positions,
    Squeeze,
    Transpose,
    fitted,
    join_rows,
    split_rows,
)

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int32)


def _random(rng, shape, dtype):
    """Any bits, NaNs and all."""
    dtype = np.dtype(dtype)
    return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype).reshape(shape)


def _shape(rng, op):
    if isinstance(op, Conv):
        d, p = rng.integers(1, 7, 2)
        return (d, op.channels, p, p)
    if isinstance(op, Positions):
        return (1, rng.integers(1, 5) ** 2 + 1, 3)
    if isinstance(op, Squeeze):
        return (1,) * op.count + tuple(rng.integers(1, 7, rng.integers(1, 3)))
    if isinstance(op, FrameTable):
        return (1, rng.integers(1, 6), 1, rng.integers(1, 6))
    if isinstance(op, HeadwiseKernels | HeadwiseBiases):
        rows = 3 * op.heads * rng.integers(1, 5)
        return (rows, 4) if isinstance(op, HeadwiseKernels) else (rows,)
    if isinstance(op, FusedKernels) and op.count == 2:
        return (2 * rng.integers(1, 7), rng.integers(1, 7))
    if isinstance(op, FusedKernels | FusedBiases):
        return (3 * rng.integers(1, 7), *rng.integers(1, 7, int(isinstance(op, FusedKernels))))
    rank = 2 if isinstance(op, Transpose | GrownRows) else rng.integers(0, 4)
    return tuple(rng.integers(1, 7, rank))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "op",
    [
        IDENTITY,
        Transpose(),
        Conv(),
        Conv(channels=1),
        Squeeze(),
        Squeeze(2),
        FusedKernels(),
        FusedKernels(2),
        FusedBiases(),
        Positions(),
        FrameTable(),
        GrownRows(),
        GrownRows(transposed=True),
        GrownRows(axis=1),
        HeadwiseKernels(2),
        HeadwiseBiases(3),
    ],
)
def test_inverse_undoes_forward(op, dtype):
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = _random(rng, _shape(rng, op), dtype)
        y = op.forward(x)
        assert y.shape == op.forward_shape(x.shape)
        assert op.inverse_shape(y.shape) == x.shape
        back = op.inverse(y)
        assert back.dtype == x.dtype and back.shape == x.shape and back.tobytes() == x.tobytes()


def test_fused_kernels_are_three_transposed_ones():
    parts = np.random.default_rng(3).normal(size=(3, 5, 4))  # [out, in] each
    rows = FusedKernels().forward(parts.reshape(15, 4))
    for part, ours in zip(parts, split_rows(rows, [4, 4, 4]), strict=True):
        np.testing.assert_array_equal(ours, part.T)


def test_headwise_kernels_have_the_three_of_a_head_together():
    parts = np.random.default_rng(4).normal(size=(3, 6, 4))  # [out, in] each, 2 heads of 3
    source = np.concatenate([part[rows] for rows in (slice(3), slice(3, 6)) for part in parts])
    ours = split_rows(HeadwiseKernels(2).forward(source), [4, 4, 4])
    for part, kernel in zip(parts, ours, strict=True):
        np.testing.assert_array_equal(kernel, part.T)
    assert HeadwiseBiases(2).forward(source[:, 0]).tolist() == parts[:, :, 0].reshape(-1).tolist()


def test_a_key_bias_is_dropped_and_written_again_as_zero():
    x = np.arange(12.0, dtype=np.float16) + 1
    op = fitted(FusedBiases(), [(4,), (4,)])
    assert fitted(FusedBiases(), [(4,)] * 3) == FusedBiases()
    y = op.forward(x)
    assert y.tolist() == [1, 2, 3, 4, 9, 10, 11, 12]
    assert op.forward_shape((12,)) == y.shape and op.inverse_shape(y.shape) == (12,)
    x[4:8] = 0
    assert op.inverse(y).tobytes() == x.tobytes()


def test_new_rows_are_the_mean_of_the_old():
    x = np.random.default_rng(4).normal(size=(5, 3)).astype(np.float32)
    mean = x.mean(axis=0)
    for op, source, new in (
        (GrownRows(), x, lambda y: y[5:]),
        (GrownRows(transposed=True), x, lambda y: y[:, 5:].T),
        (GrownRows(axis=1), x.T, lambda y: y[:, 5:].T),
    ):
        shape = (7, 3) if op == GrownRows() else (3, 7)
        op = fitted(op, [shape])
        y = op.forward(source)
        assert y.shape == op.forward_shape(source.shape) == shape and y.dtype == np.float32
        np.testing.assert_allclose(new(y), [mean, mean], atol=1e-6)
        assert "2 more than 5 rows" in op.remark(source.shape)
        assert op.remark(op.inverse_shape(shape)) is None
        np.testing.assert_array_equal(op.forward(op.inverse(y)), y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_joined_as_they_were_split(dtype):
    rng = np.random.default_rng(1)
    for _ in range(20):
        lengths = rng.integers(0, 5, rng.integers(1, 4)).tolist()
        x = _random(rng, (sum(lengths), 3), dtype)
        parts = split_rows(x, lengths)
        assert [len(part) for part in parts] == lengths
        assert join_rows(parts).tobytes() == x.tobytes()


def test_split_rows_takes_all_rows():
    with pytest.raises(ValueError, match="5 rows cannot be cut"):
        split_rows(np.zeros((5, 2)), [2, 2])


def test_conv_is_the_product_with_patches_in_reading_order():
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((5, 3, 2, 2), np.float32)
    pixels = rng.standard_normal((1, 4, 6, 3), np.float32)
    patches = [pixels[0, r : r + 2, c : c + 2].reshape(-1) for r in (0, 2) for c in (0, 2, 4)]
    ours = np.stack(patches) @ Conv().forward(weight)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(weight), stride=2
    )
    np.testing.assert_allclose(ours, theirs[0].flatten(1).T.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (Transpose(), (3,)),
        (Conv(), (4, 1, 2, 2)),
        (Conv(), (4, 3, 2, 3)),
        (Conv(), (4, 3)),
        (HeadwiseKernels(2), (9, 4)),
        (HeadwiseBiases(4), (6,)),
        (Squeeze(2), (1, 3, 4)),
        (Squeeze(), (1,)),
        (FusedKernels(), (7, 3)),
        (FusedBiases(), (7,)),
        (Positions(), (10, 4)),
        (FrameTable(), (5, 1, 4)),
        (FrameTable(), (2, 5, 1, 4)),
        (GrownRows(rows=4), (5, 3)),
    ],
)
def test_shapes_that_an_op_does_not_take(op, shape):
    with pytest.raises(ValueError, match="not"):
        op.forward_shape(shape)


def test_shapes_that_conv_cannot_have_made():
    with pytest.raises(ValueError, match="no square patch"):
        Conv().inverse_shape((15, 4))
