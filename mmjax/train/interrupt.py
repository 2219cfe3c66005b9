"""SIGTERM and Ctrl-C: the run saves after the step in progress and ends; a second one ends it now.

Several processes must stop after the same step: JAX's preemption service agrees on it when one of
them gets SIGTERM.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Stopped(SystemExit):
    """The run was asked to stop, and did; nothing is lost.

    As an exit status: 0 after SIGTERM, as schedulers expect; 130 after Ctrl-C, so that a shell does
    not go on with the next command.
    """

    def __init__(self, number: int):
        super().__init__(130 if number == signal.SIGINT else 0)


class Interruption:
    """Turns the signals into `Stopped`: at once, or inside `deferred` when `stop` is called."""

    def __init__(self):
        self._signal: int | None = None
        self._deferred = False
        self._steps = 0

    @contextlib.contextmanager
    def watch(self) -> Iterator["Interruption"]:
        """Handles the signals inside; does nothing outside of the main thread, where Python has no
        say in them."""
        several = jax.process_count() > 1  # their SIGTERM belongs to JAX's preemption service
        numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            numbers = ()
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Around a step, its log line and its save, which must not be torn apart."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def requested(self) -> bool:
        """Whether the run has to stop after this step; all processes must ask equally often."""
        self._steps += 1
        if self._signal is None and jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(self._steps):
                self._signal = signal.SIGTERM
        return self._signal is not None

    def stop_if_requested(self) -> None:
        """Between two turns of a loop that has nothing to save.

        What the signal raises can be lost: nothing comes out of the garbage collector's callbacks,
        of which JAX has one.
        """
        if self.requested():
            self.stop()

    def stop(self) -> None:
        raise Stopped(self._signal)

    def _handle(self, number: int, frame) -> None:
        name = signal.Signals(number).name
        if self._signal is not None:  # the second one: whoever sends it does not want to wait
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._signal = number
        if self._deferred:
            print(f"\n{name}: saving after this step, then ending (once more: end now)", flush=True)
        else:
            print(f"\n{name}: ending; the same command goes on from the last save", flush=True)
            self.stop()
