"""Where examples come from: sources by name.

A source is random access and cheap to index: ``len(source)``, ``source[i] -> Example`` (pictures
are references until the pipeline decodes them), ``source.kinds[i] -> str`` for sampling, and
``source.name`` for messages.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mmjax.data.example import Example
from mmjax.data.sources.easy_vqa import EasyVQA
from mmjax.data.sources.easy_vqa_text import EasyVQAPairs, EasyVQAText
from mmjax.data.sources.jsonl import Jsonl


class Source(Protocol):
    name: str
    kinds: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


SOURCES: dict[str, Callable[..., Source]] = {
    "easy-vqa": EasyVQA,  # task="question" | "caption"
    "easy-vqa-text": EasyVQAText,  # documents for the tiny language models
    "easy-vqa-pairs": EasyVQAPairs,  # pictures with a rich and a short caption, for the tiny CLIP
}


def make_source(name: str, split: str, **options: Any) -> Source:
    """The source called ``name``.

    Args:
      name: one of `SOURCES`, or ``jsonl:PATH``; ``{split}`` in the path is replaced, and a path
        without it is read whatever the split.
      split: ``train``, ``dev`` or ``test``.
      options: the source's own.

    Raises:
      ValueError: no such source; lists those there are.
    """
    if name.startswith("jsonl:"):
        return Jsonl(name.removeprefix("jsonl:").replace("{split}", split), **options)
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no source named {name!r}; {hint}known: {', '.join(SOURCES)}, jsonl:PATH")
    return SOURCES[name](split, **options)
