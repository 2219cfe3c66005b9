"""Several processes: joins them, and what they tell each other.

On SLURM and Cloud TPU slices the environment says who takes part. By hand, start the same command
in every process with three variables:

    JAX_COORDINATOR_ADDRESS=host:port   of process 0, a free port there
    JAX_NUM_PROCESSES=2
    JAX_PROCESS_ID=0                    0, 1, ...

A process that ends without a word (its host is lost) takes the others with it: they are told when
it has been silent for 100 seconds, or as many as MMJAX_HEARTBEAT_SECONDS says in all of them.

All processes run the same code, so that they meet in the same collectives. What people read comes
from process 0 alone: the others are silent, and write into a `story_folder` that vanishes.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

ADDRESS, NUM_PROCESSES, PROCESS_ID = BY_HAND = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
HEARTBEAT = "MMJAX_HEARTBEAT_SECONDS"


def initialize() -> None:
    """Connects this process to its peers, if the environment says that there are some; all but the
    first then print nothing more to standard output.

    Must run before anything asks for devices. One process alone needs, and does, nothing.

    Raises:
      ValueError: variables are missing or do not fit together; names all of them.
    """
    given = {name: os.environ[name] for name in BY_HAND if os.environ.get(name)}
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    hosts = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(","))
    in_cluster = (tasks > 1 or hosts > 1) and given.keys() <= {ADDRESS}
    if not given and not in_cluster:
        return
    silence = os.environ.get(HEARTBEAT, "100")
    if not silence.isdecimal() or not int(silence):
        raise ValueError(f"{HEARTBEAT} is {silence!r}, it must be a whole number of seconds")
    options = dict(heartbeat_timeout_seconds=int(silence))
    if in_cluster:
        jax.distributed.initialize(**options)
    else:
        if problems := _problems(given):
            raise ValueError(
                "several processes are started by hand with three variables, "
                f"{', '.join(BY_HAND)}:\n  " + "\n  ".join(problems)
            )
        jax.distributed.initialize(
            given[ADDRESS], int(given[NUM_PROCESSES]), int(given[PROCESS_ID]), **options
        )
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")


def _problems(given: Mapping[str, str]) -> list[str]:
    """What is wrong with the variables of a start by hand."""
    found = [f"{name} is not set" for name in BY_HAND if name not in given]
    if ADDRESS in given and not given[ADDRESS].rpartition(":")[2].isdecimal():
        found.append(f"{ADDRESS} is {given[ADDRESS]!r}, it must be host:port")
    numbers = {name: given[name] for name in (NUM_PROCESSES, PROCESS_ID) if name in given}
    found += [
        f"{name} is {value!r}, it must be a whole number"
        for name, value in numbers.items()
        if not value.isdecimal()
    ]
    if len(numbers) == 2 and all(value.isdecimal() for value in numbers.values()):
        count, index = (int(value) for value in numbers.values())
        if index >= count:
            found.append(
                f"{PROCESS_ID} is {index} of {count} processes: give 0 to {count - 1}, each once"
            )
    return found


def is_first() -> bool:
    return jax.process_index() == 0


@contextlib.contextmanager
def story_folder(workdir: Path) -> Iterator[Path]:
    """Where this process writes what people read: ``workdir`` in the first one, elsewhere a folder
    that is deleted at the end."""
    if is_first():
        yield workdir
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def wait_for_all(where: str) -> None:
    """Returns when every process has come here; ``where`` must be the same in all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def first_says(answer: bool) -> bool:
    """The first process's ``answer``, in all: they must not decide differently."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.array(answer)))


def gather(records: list[Any]) -> list[Any]:
    """The JSON-able ``records`` of all processes, in every process, the first one's first."""
    if jax.process_count() == 1:
        return records
    data = np.frombuffer(json.dumps(records).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(data.size)).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [
        record
        for row, size in zip(rows, sizes, strict=True)
        for record in json.loads(row[:size].tobytes())
    ]


def fetch(x: jax.Array | np.ndarray) -> np.ndarray:
    """All of an array in this process's memory; all processes must ask for it."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
