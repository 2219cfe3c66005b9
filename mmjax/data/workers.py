"""How many threads read data ahead.

Decoding and resizing pictures runs outside of Python's lock, so threads of one process share the
cores; what is Python of a record, about a millisecond, they do in turns.
"""

import os

import grain

_MOST = 16  # unless more are asked for


def default_workers() -> int:
    """One for each core that this process may use (where the system tells), no more than 16."""
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return min(len(allowed(0)), _MOST)


def reading(num_workers: int | None = None) -> grain.ReadOptions:
    """``num_workers`` threads (None: `default_workers`), and items that may wait to be taken."""
    count = default_workers() if num_workers is None else num_workers
    return grain.ReadOptions(num_threads=count, prefetch_buffer_size=max(8, count))
