"""A file of answers, one JSON object a line; see `mmjax.data.resumable`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.data.resumable import ResumableFile
from mmjax.parallel.distributed import is_first, wait_for_all


class AnswersFile(ResumableFile):
    """Lines that the first process adds; the others keep count.

    Attributes:
      bad: how many of the lines have an ``error``.
      example: one of these, or None.
    """

    def __init__(self, out: Path, origin: Mapping[str, Any]):
        self.bad, self.example = 0, None
        wait = lambda: wait_for_all("the answers so far")  # noqa: E731
        super().__init__(out, origin, writes=is_first(), wait=wait)

    def count(self, row: Mapping[str, Any]) -> None:
        super().count(row)
        if "error" in row:
            self.bad += 1
            self.example = self.example or f"{row['id']}: {row['error']}"
