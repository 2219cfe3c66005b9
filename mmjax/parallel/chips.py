"""TPUs and GPUs that need not be here: their devices, for compilers, and what they can do.

    v5e:4x4      16 chips of the kind v5e in a square
    h200:8       8 GPUs of one machine

Figures of TPUs are those that Google publishes of a chip (cloud.google.com/tpu/docs) and of its
links (jax-ml.github.io/scaling-book); of GPUs NVIDIA's data sheets of the SXM forms, of dense
products.
"""

import dataclasses
import importlib.util
import os

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """
    Attributes:
      flops: bfloat16 operations of a matrix product in a second.
      memory: bytes.
      bandwidth: bytes between it and its memory in a second.
      link: bytes in a second to one neighbour; of a GPU half of what it sends.
      cores: streaming multiprocessors of a GPU; None = a TPU.
      cache: their second level, bytes; ``capability``: what NVIDIA counts its generations by;
        ``shared``: bytes that the threads of one core may share.
    """

    flops: float
    memory: int
    bandwidth: float
    link: float
    cores: int | None = None
    cache: int = 0
    capability: tuple[int, int] = (0, 0)
    shared: int = 0


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 45e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 45e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 90e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 90e9),
    "a100": Chip(312e12, int(80e9), 2039e9, 150e9, 108, 40 * 2**20, (8, 0), 163 * 2**10),
    "h100": Chip(989e12, int(80e9), 3350e9, 225e9, 132, 50 * 2**20, (9, 0), 227 * 2**10),
    "h200": Chip(989e12, int(141e9), 4800e9, 225e9, 132, 50 * 2**20, (9, 0), 227 * 2**10),
}


def chip_of(topology: str) -> Chip:
    """Raises ValueError for a kind that is not known."""
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise ValueError(f"topology {topology!r}: its kind is none of {', '.join(CHIPS)}")
    return CHIPS[kind]


def devices_of(topology: str) -> list[jax.Device]:
    """The devices of a slice, or of a machine with GPUs, to compile for.

    Raises:
      ModuleNotFoundError: there is no compiler for them here.
      ValueError: no such slice.
    """
    if chip_of(topology).cores is not None:
        return _gpus(topology)
    kind, _, shape = topology.partition(":")
    if not all(size.isdecimal() for size in shape.split("x")):
        raise ValueError(f"topology {topology!r}: how long is each side? e.g. {kind}:2x2")
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            "compiling for TPUs needs libtpu, not the TPUs: pip install 'mmjax[aot]'"
        )
    from jax.experimental.topologies import get_topology_desc

    # Otherwise it looks for the slice that this machine might be part of, and locks its chips.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # Two cores of a v4 are one device.
    more = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        found = get_topology_desc(platform="tpu", topology_name=topology, **more)
    except Exception as error:  # libtpu's own kind of error
        said = str(error).splitlines()[0]
        raise ValueError(f"topology {topology!r}: {said}; e.g. v5e:4x4, v5p:2x2x2") from error
    return list(found.devices)


def _gpus(topology: str) -> list[jax.Device]:
    kind, _, count = topology.partition(":")
    if not count.isdecimal() or not int(count):
        raise ValueError(f"topology {topology!r}: how many GPUs? e.g. {kind}:8")
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise ModuleNotFoundError(
            "compiling for GPUs needs NVIDIA's libraries, not the GPUs: pip install 'mmjax[cuda12]'"
        )
    from jax.experimental.topologies import get_topology_desc

    found = get_topology_desc(
        kind, "cuda", target_config=_target(kind, CHIPS[kind]), topology=f"1x1x{count}"
    )
    return list(found.devices)


def _target(name: str, chip: Chip) -> str:
    """XLA's description of a GPU (GpuTargetConfigProto, as text)."""
    major, minor = chip.capability
    extension = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""
gpu_device_info {{
  name: "{name}" model_str: "{name}" device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {major}.{minor}"
  cuda_compute_capability {{ major: {major} minor: {minor} {extension} }}
  core_count: {chip.cores} fpus_per_core: {64 if major < 9 else 128}
  clock_rate_ghz: {1.41 if major < 9 else 1.98}
  device_memory_size: {chip.memory} memory_bandwidth: {chip.bandwidth:.0f}
  l2_cache_size: {chip.cache}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {chip.shared}
  shared_memory_per_core: {chip.shared + 1024}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  device_address_bits: 64 ecc_enabled: true
  driver_version: "12.9.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
