"""Waiting for data: says so after a while, and ends what waits in vain.

A network disk that no longer answers, or a pipe in a picture's place, raises nothing: the thread
that reads it never comes back, and the run would stand still in silence.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

ENDS_AFTER = 10  # times the patience

T = TypeVar("T")


class Stalled(TimeoutError):
    """Reading does not go on. Threads that hang are left behind: the interpreter would wait for
    them at its end, so whoever catches this as the last one leaves by `os._exit`."""


def patient(items: Iterator[T], seconds: float, reading: Callable[[], str]) -> Iterator[T]:
    """``items``, and a line to standard error when one takes longer than ``seconds``.

    Only in the main thread, where Python lets a signal (SIGALRM) interrupt the wait.

    Args:
      seconds: 0 waits for ever.
      reading: what is being read meanwhile, in words.

    Raises:
      Stalled: an item took `ENDS_AFTER` times as long.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield from items
        return
    while True:
        with _alarm(seconds, reading):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


@contextlib.contextmanager
def _alarm(seconds: float, reading: Callable[[], str]) -> Iterator[None]:
    rang = 0

    def ring(number: int, frame) -> None:
        nonlocal rang
        rang += 1
        waited = f"no batch for {seconds * (1 if rang == 1 else ENDS_AFTER):g} s"
        if rang > 1:
            raise Stalled(
                f"{waited}; {reading()}. Does a disk or a network not answer? What was saved is "
                "whole: the same command goes on from there; --config.patience=SECONDS waits longer"
            )
        print(f"\n{waited}; {reading()}", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGALRM, ring)
    # What a handler raises can be lost (in a garbage collector's callback): then it rings again.
    signal.setitimer(signal.ITIMER_REAL, seconds, (ENDS_AFTER - 1) * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
