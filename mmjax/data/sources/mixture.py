"""Several sources as one: Cheetor's reference, section 8, trains on synthetic pairs and captions,
24 to 64 of each batch.

In a data section, ``source`` is then a mapping; ``weights`` says how much of each:

    data=dict(
        source=dict(
            differences=dict(source="jsonl:pairs/pairs.jsonl"),
            captions=dict(source="tfds:cc3m", split="validation", options=dict(kind="tag")),
        ),
        split="train",  # of those that have none of their own
        weights=dict(differences=24, captions=64),
        ...
    )
"""

import bisect
import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmjax.data.example import Example

if TYPE_CHECKING:
    from mmjax.data.sources import Source

_PART = ("source", "split", "options")


class Mixture:
    """The records of all sources, one source after the other, by name; ``info["part"]`` of an
    example is the name of its source.

    Attributes:
      name: which sources, under which names.
      parts: name -> source.
      kinds: of each record, the name of its source. Its own kind stays in its ``info``.
      notices: those of the sources.
    """

    def __init__(self, parts: "Mapping[str, Source]"):
        parts = dict(sorted(parts.items()))  # however a config was written and read
        self.parts = parts
        self.name = " + ".join(f"{name} ({source.name})" for name, source in parts.items())
        self.kinds = [name for name, source in parts.items() for _ in range(len(source))]
        self._ends = list(itertools.accumulate(map(len, parts.values())))
        self.notices = tuple(
            f"{name}: {notice}"
            for name, source in parts.items()
            for notice in getattr(source, "notices", ())
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, there is no {index}")
        at = bisect.bisect_right(self._ends, index)
        source = self.parts[self.kinds[index]]
        example = source[index - (self._ends[at] - len(source))]
        return dataclasses.replace(example, info=example.info | {"part": self.kinds[index]})


def part_problem(part: Any) -> str | None:
    """What is wrong with a part of a mixture as a config has it."""
    fine = isinstance(part, Mapping) and isinstance(part.get("source"), str)
    if fine and not part.keys() - set(_PART):
        return None
    return f"expected dict(source=NAME), and split and options if need be; got {part!r:.80}"


def named(source: str | Mapping[str, Mapping]) -> str:
    """What a data section reads, in a few words."""
    if isinstance(source, str):
        return source
    return " + ".join(f"{name} ({part['source']})" for name, part in sorted(source.items()))
