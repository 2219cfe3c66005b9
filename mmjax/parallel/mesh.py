"""The device mesh: ``data`` (replicas), ``fsdp`` (shards of parameters and rows), ``tensor``
(shards of a layer)."""

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

AXES = ("data", "fsdp", "tensor")
# XLA propagates shardings. JAX's default, Explicit, would make every operation state its own.
AUTO = (AxisType.Auto,) * 3


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: list | None = None) -> Mesh:
    """A mesh over ``devices`` (default: all). One of the sizes may be -1: whatever the others
    leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _filled((data, fsdp, tensor), len(devices))
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        wanted = " x ".join(
            f"{axis}={size}" for axis, size in zip(AXES, (data, fsdp, tensor), strict=True)
        )
        raise ValueError(
            f"the mesh {wanted} does not fit {len(devices)} devices: "
            "make the sizes multiply to that number, or give one of them as -1"
        )
    return jax.make_mesh(sizes, AXES, axis_types=AUTO, devices=devices)


def make_abstract_mesh(
    num_devices: int, data: int = 1, fsdp: int = 1, tensor: int = 1
) -> AbstractMesh:
    """The mesh of these sizes on devices that need not be there; -1 is what they leave of
    ``num_devices``, or 1 where they do not divide it.

    Raises:
      ValueError: sizes that are neither positive nor one -1.
    """
    sizes = _filled((data, fsdp, tensor), num_devices)
    if sizes.count(-1) == 1:
        sizes = tuple(1 if size == -1 else size for size in sizes)
    if min(sizes) < 1:
        raise ValueError(
            f"the mesh data={data} x fsdp={fsdp} x tensor={tensor} has no size: "
            "give positive numbers, or one of them as -1"
        )
    return AbstractMesh(sizes, AXES, axis_types=AUTO)


def _filled(sizes: tuple[int, ...], num_devices: int) -> tuple[int, ...]:
    """``sizes`` with a single -1 replaced, if the others divide ``num_devices``."""
    known = math.prod(size for size in sizes if size > 0)
    if sizes.count(-1) != 1 or num_devices % known:
        return sizes
    return tuple(num_devices // known if size == -1 else size for size in sizes)
