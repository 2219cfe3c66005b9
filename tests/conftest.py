"""Eight fake devices on the CPU, so that nothing is left out; set before anything imports jax."""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # The devices share few cores: on a busy machine one may come late to a collective.
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
)
if version("jaxlib").startswith("0.10."):  # XLA refuses to start with flags it does not know
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # they compile for long
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"mmjax-tests-{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.fixture(scope="module")
def quick_compile():
    """For programs that run for a moment: compiling them well takes longer than running them."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
