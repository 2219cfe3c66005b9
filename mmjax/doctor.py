"""``mmjax doctor``: what this machine has, what is missing, and how to get it.

Read off the installed package itself: its requirements and extras are those of pyproject.toml.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

TESTED = {"jax": "0.10.2", "flax": "0.12.8", "grain": "0.2.18", "orbax-checkpoint": "0.12.8"}
TESTED |= {"transformers": "5.23", "torch": "2.13.0"}

EXTRAS = {
    "demo": "the easy-VQA pictures that the default configs train on",
    "convert": "reads PyTorch's .bin, .pt and .pth files (only `python -m conversion` does)",
    "gguf": "reads checkpoints of llama.cpp (`python -m conversion import`)",
    "int8": "keeps frozen kernels in 8 bits (model.int8)",
    "serve": "serves models to others: a page, and an API that OpenAI's clients speak",
    "parquet": "Hugging Face data sets on disk",
    "tfds": "data sets of tensorflow-datasets; tensorflow itself is not needed",
    "beam": "writes shards on many machines (prepare_data.py shards --runner)",
    "video": "reads films (.mp4 and the like); animated pictures need nothing",
    "test": "what `python -m pytest` needs",
    "cuda12": "NVIDIA GPUs, CUDA 12",
    "cuda13": "NVIDIA GPUs, CUDA 13",
    "tpu": "Cloud TPUs",
    "aot": "compiles for TPUs on a machine that has none",
}


def examine() -> tuple[str, list[str]]:
    """Returns (the report, one line for each problem that keeps mmjax from working here)."""
    problems: list[str] = []
    sections = (_machine, _packages, _devices, _extras, _own)
    return "\n\n".join("\n".join(section(problems)) for section in sections), problems


def _machine(problems: list[str]) -> Iterator[str]:
    python = sys.version.split()[0]
    yield f"Machine   {platform.platform()}, {os.cpu_count()} cores, Python {python}"
    usage = shutil.disk_usage(Path.cwd())
    yield f"Disk      {usage.free / 2**30:.1f} GiB free in {Path.cwd()}"


def _packages(problems: list[str]) -> Iterator[str]:
    yield "Packages"
    rows = []
    for requirement in _requirements(extra=None):
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"mmjax needs {requirement}, found {found or 'none'}: pip install -e .")
        tested = TESTED.get(requirement.name, "")
        rows.append((requirement.name, found or "missing", tested and f"tested with {tested}"))
    yield from _columns(rows)


def _devices(problems: list[str]) -> Iterator[str]:
    import jax
    import jax.numpy as jnp

    try:
        devices = jax.devices()
    except RuntimeError as error:
        problems.append(f"JAX finds no device: {error}")
        return
    kinds = sorted({device.device_kind for device in devices})
    yield f"Devices   {len(devices)} {devices[0].platform} ({', '.join(kinds)})"
    for device in devices:
        limit = (device.memory_stats() or {}).get("bytes_limit")
        if limit:
            yield f"          {device}: {limit / 2**30:.1f} GiB"
    start = time.perf_counter()
    total = jax.jit(lambda x: (x @ x).sum())(jnp.ones((256, 256), jnp.float32))
    if float(total) != 256.0**3:
        problems.append(f"a product of 256x256 ones sums up to {float(total)}, not to {256**3}")
    yield f"          compiles and multiplies: {time.perf_counter() - start:.2f} s"
    attention = {"gpu": "cudnn in half precision, else xla", "tpu": "splash where shapes allow"}
    yield f"          attention: {attention.get(devices[0].platform, 'xla')}"
    if devices[0].platform == "cpu" and (pages := _huge_pages()):
        yield f"          huge pages: {pages}"
    if hint := _unused_accelerator(devices[0].platform):
        problems.append(hint)


def _unused_accelerator(backend: str) -> str | None:
    """The machine seems to have an accelerator that JAX does not use."""
    if os.environ.get("JAX_PLATFORMS"):  # somebody has chosen
        return None
    if backend == "cpu" and shutil.which("nvidia-smi"):
        return "there is an NVIDIA driver, but JAX runs on the CPU: pip install -e '.[cuda13]'"
    if backend == "cpu" and any(Path("/dev").glob("accel[0-9]*")):
        return "there is a TPU, but JAX runs on the CPU: pip install -e '.[tpu]'"
    return None


def _huge_pages(system: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> str | None:
    """Whether large arrays lie in them, where Linux leaves it to programs and glibc can ask."""
    chosen = system.read_text() if system.is_file() else ""
    library, version = platform.libc_ver()
    if "[madvise]" not in chosen or library != "glibc" or Version(version) < Version("2.35"):
        return None
    setting = "glibc.malloc.hugetlb=1"
    if setting in os.environ.get("GLIBC_TUNABLES", ""):
        return "used"
    return f"not used; GLIBC_TUNABLES={setting} is faster on a CPU (docs/performance.md)"


def _extras(problems: list[str]) -> Iterator[str]:
    yield "Extras (pip install -e '.[NAME]')"
    rows = []
    for extra in importlib.metadata.metadata("mmjax").get_all("Provides-Extra") or ():
        needed = [r for r in _requirements(extra) if r.name != "mmjax"]
        missing = [r.name for r in needed if _version(r.name) is None]
        # An extra such as cuda12 names jax again, with an extra of its own.
        missing += [f"{r.name}[{','.join(r.extras)}]" for r in needed if r.extras and not _has(r)]
        state = f"no: {', '.join(missing)}" if missing else "yes"
        rows.append((extra, EXTRAS.get(extra, ""), state))
    yield from _columns(rows)


def _own(problems: list[str]) -> Iterator[str]:
    yield "Comes with it"
    assets = Path(__file__).parent / "assets" / "tiny"
    rows = []
    for name in ("llama", "llama-multi", "llama-clips", "clip", "blip2"):
        file = assets / name / "model.safetensors"
        if not file.is_file():
            problems.append(f"the weights {file} are missing: check the package out again")
            continue
        rows.append((f"tiny {name}", f"{file.stat().st_size / 2**20:.1f} MiB", ""))
    data = "easy-VQA: 4,000 and 1,000 pictures" if importlib.util.find_spec("easy_vqa") else None
    rows.append(("pictures", data or "none: pip install -e '.[demo]'", ""))
    yield from _columns(rows)


def _requirements(extra: str | None) -> list[Requirement]:
    """Of mmjax alone, or what ``extra`` adds."""
    parsed = [Requirement(text) for text in importlib.metadata.requires("mmjax") or ()]
    plain = [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]
    if extra is None:
        return plain
    return [r for r in parsed if r not in plain and r.marker.evaluate({"extra": extra})]


def _has(requirement: Requirement) -> bool:
    """Whether all that the requirement's own extras name is installed."""
    named = [Requirement(text) for text in importlib.metadata.requires(requirement.name) or ()]
    for extra in requirement.extras:
        for below in named:
            wanted = below.marker is not None and below.marker.evaluate({"extra": extra})
            if wanted and not below.marker.evaluate({"extra": ""}) and not _version(below.name):
                return False
    return True


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}".rstrip()
