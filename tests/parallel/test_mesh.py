"""The mesh: sizes that fit the devices, or an error that says so."""

import jax
import pytest
from jax.sharding import AxisType

from mmjax.parallel.mesh import make_mesh


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        (dict(data=8), (8, 1, 1)),
        (dict(data=2, fsdp=2, tensor=2), (2, 2, 2)),
        (dict(data=-1, tensor=2), (4, 1, 2)),
        (dict(fsdp=-1), (1, 8, 1)),
        (dict(fsdp=4, tensor=-1), (1, 4, 2)),
    ],
)
def test_sizes(sizes, shape):
    mesh = make_mesh(**sizes)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert len(set(mesh.devices.flat)) == 8


def test_chosen_devices():
    assert list(make_mesh(devices=jax.devices()[3:4]).devices.flat) == jax.devices()[3:4]


@pytest.mark.parametrize(
    "sizes",
    [
        dict(),
        dict(data=3),
        dict(data=16),
        dict(data=-1, fsdp=3),
        dict(data=-1, fsdp=-1),
        dict(data=-2, fsdp=-4),
    ],
)
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match="does not fit 8 devices: make the sizes multiply"):
        make_mesh(**sizes)
