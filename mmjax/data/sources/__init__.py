"""Where examples come from: sources by name.

A source is random access and cheap to index: ``len(source)``, ``source[i] -> Example`` (pictures
are references until the pipeline decodes them; raises `BadSample` for a record that cannot be
read), ``source.kinds[i] -> str`` for sampling, and ``source.name`` for messages. It may have
``notices``: what a user should know about how it was read.

    easy-vqa               questions about pictures, or captions of them (task=question | caption)
    easy-vqa-text          documents for the tiny language models
    easy-vqa-pairs         pictures with a rich and a short caption, for the tiny CLIP
    jsonl:PATH             your own data, see `mmjax.data.sources.jsonl`
    llava:PATH             LLaVA's conversations, see `mmjax.data.sources.llava`
    lmeye:FOLDER           LMEye's questions with pictures in zip archives, and
    lmeye-v1:PATH          LMEye's first data, pictures by id; see `mmjax.data.sources.lmeye`
    demon:PATH             instructions with several pictures, see `mmjax.data.sources.demon`
    tfds:NAME              a prepared tensorflow-datasets data set, see `mmjax.data.sources.tfds`

Options follow the name: ``llava:chat.json?turns=first&image_root=/data/coco``.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mmjax.data.example import Example
from mmjax.data.sources.demon import Demon
from mmjax.data.sources.easy_vqa import EasyVQA
from mmjax.data.sources.easy_vqa_text import EasyVQAPairs, EasyVQAText
from mmjax.data.sources.jsonl import Jsonl
from mmjax.data.sources.llava import Llava
from mmjax.data.sources.lmeye import LMEyeById, LMEyeChunks
from mmjax.data.sources.tfds import Tfds


class Source(Protocol):
    name: str
    kinds: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


# name -> source of (split, options)
SOURCES: dict[str, Callable[..., Source]] = {
    "easy-vqa": EasyVQA,
    "easy-vqa-text": EasyVQAText,
    "easy-vqa-pairs": EasyVQAPairs,
}
# what stands before the colon -> source of (path, options); ``{split}`` in the path is replaced
FILES: dict[str, Callable[..., Source]] = {
    "jsonl": Jsonl,
    "llava": Llava,
    "lmeye": LMEyeChunks,
    "lmeye-v1": LMEyeById,
    "demon": Demon,
}


def make_source(name: str, split: str, **options: Any) -> Source:
    """The source called ``name``.

    Args:
      name: one of the above, options included or not; ``{split}`` in a path is replaced, and a path
        without it is read whatever the split.
      split: ``train``, ``dev`` or ``test``; with tfds, what the data set has.
      options: the source's own.

    Raises:
      ValueError: no such source or option; lists those there are.
    """
    name, more = _options_in(name)
    options |= more
    kind, colon, where = name.partition(":")
    if colon and kind in FILES:
        return _made(FILES[kind], name, where.replace("{split}", split), **options)
    if colon and kind == "tfds":
        return _made(Tfds, name, where, split, **options)
    if name in SOURCES:
        return _made(SOURCES[name], name, split, **options)
    known = [*SOURCES, *(f"{kind}:PATH" for kind in FILES), "tfds:NAME"]
    spelled = {each.partition(":")[0]: each for each in known}
    near = [spelled[each] for each in difflib.get_close_matches(kind, spelled, n=3)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"no source named {name!r}; {hint}known: {', '.join(known)}")


def _options_in(name: str) -> tuple[str, dict[str, Any]]:
    """``NAME?key=value&key=value`` taken apart; digits are numbers."""
    found = re.fullmatch(r"(.*?)\?(\w+=[^&]*(?:&\w+=[^&]*)*)", name, flags=re.DOTALL)
    if found is None:
        return name, {}
    pairs = [pair.partition("=") for pair in found[2].split("&")]
    return found[1], {key: int(value) if value.isdigit() else value for key, _, value in pairs}


def _made(make: Callable[..., Source], name: str, *arguments: str, **options: Any) -> Source:
    known = list(inspect.signature(make).parameters)[len(arguments) :]
    if unknown := sorted(options.keys() - set(known)):
        raise ValueError(
            f"the source {name} has no option {', '.join(unknown)}; "
            f"there {'are ' + ', '.join(known) if known else 'is none'}"
        )
    return make(*arguments, **options)
