"""A record that never comes: threads that hang are named, and end the run."""

import subprocess
import sys
import threading
import time

import pytest
from end_to_end.short import ROOT

from mmjax.data.patience import ENDS_AFTER, Stalled, patient
from mmjax.data.pipeline import Pipeline
from mmjax.data.sequence import Lengths
from mmjax.data.templates import LMEyeQuestion


class Stuck:
    """A source whose record 2 is read for ever."""

    def __init__(self, source):
        self._source, self.comes_back = source, threading.Event()
        self.name, self.kinds = source.name, source.kinds

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int):
        if index == 2:
            self.comes_back.wait()
        return self._source[index]


@pytest.fixture
def stuck(source, tokenizer):
    """A pipeline that gives two batches; its threads end with the test."""
    source = Stuck(source)
    yield Pipeline(
        source,
        LMEyeQuestion(100, 101, num_responses=2),
        tokenizer,
        Lengths(prefix=10, request=1, target=7),
        batch_size=1,
        seed=0,
        image_size=8,
        shuffle=False,
        patience=0.15,
    )
    source.comes_back.set()


def test_a_thread_that_hangs_is_named_and_then_ends_the_run(stuck, capsys):
    batches = stuck.iterate()
    assert [int(next(batches).row_id[0]) for _ in range(2)] == [0, 1]
    start, _ = time.monotonic(), capsys.readouterr()
    with pytest.raises(Stalled, match=r"no batch for 1.5 s; .* record 2 for \d s \(grain"):
        next(batches)
    assert ENDS_AFTER * 0.15 <= time.monotonic() - start < 15
    said = capsys.readouterr().err
    assert said.count("no batch for 0.15 s") == 1 and "record 2 for" in said


def test_who_is_in_time_is_left_alone(capsys):
    slow = (time.sleep(0.05) or i for i in range(3))
    assert list(patient(slow, 0.5, lambda: "")) == [0, 1, 2]
    forever = (time.sleep(0.05) or i for i in range(2))
    assert list(patient(forever, 0, lambda: "")) == [0, 1], "without patience: none is needed"
    seen = []
    elsewhere = threading.Thread(target=lambda: seen.extend(patient(iter([1, 2]), 1, lambda: "")))
    elsewhere.start()
    elsewhere.join()
    assert seen == [1, 2] and capsys.readouterr().err == ""


PROGRAM = """
import threading
import grain
from mmjax import command
from mmjax.data.patience import patient

def main(_):
    never = grain.MapDataset.range(2).map(lambda i: threading.Event().wait())
    list(patient(iter(never.to_iter_dataset()), 0.05, lambda: "threads read a disk that is gone"))

command.run(main)
"""


def test_a_process_with_threads_that_hang_ends(tmp_path):
    """The interpreter alone would wait for them."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Stalled: no batch for 0.5 s; threads read a disk that is gone" in done.stderr
    assert "Traceback" not in done.stderr
