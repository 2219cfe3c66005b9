"""Several processes: joins them when the environment says that there are some."""

import os

import jax


def initialize() -> None:
    """Connects this process to its peers on SLURM, Cloud TPU slices, or where
    JAX_COORDINATOR_ADDRESS is set.

    Must run before anything asks for devices. One process alone needs, and does, nothing.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    hosts = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(","))
    if "JAX_COORDINATOR_ADDRESS" in os.environ or tasks > 1 or hosts > 1:
        jax.distributed.initialize()
