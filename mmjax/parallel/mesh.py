"""The device mesh: ``data`` (replicas), ``fsdp`` (shards of parameters and rows), ``tensor``
(shards of a layer)."""

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: list | None = None) -> Mesh:
    """A mesh over ``devices`` (default: all). One of the sizes may be -1: whatever the others
    leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    known = 1
    for size in sizes:
        known *= size if size > 0 else 1
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    total = sizes[0] * sizes[1] * sizes[2]
    if min(sizes) < 1 or total != len(devices):
        wanted = " x ".join(
            f"{axis}={size}" for axis, size in zip(AXES, (data, fsdp, tensor), strict=True)
        )
        raise ValueError(
            f"the mesh {wanted} does not fit {len(devices)} devices: "
            "make the sizes multiply to that number, or give one of them as -1"
        )
    # Auto: XLA propagates shardings. JAX's default, Explicit, would make every operation state its
    # own.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
