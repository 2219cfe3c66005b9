"""Prompts around records: ``SOURCE?prompts=vqa`` asks each record of any source in one of the ways
of `mmjax.data.lynx.PROMPTS`.

    what color is the bus       ->  What color is the bus? Answer in a word or two.
    (a picture, and no text)    ->  Give a short caption for this picture.

Which one is drawn from the seed and the record's number alone. ``prompt_choice=one`` takes the
first of them for all (the paper's ablation "no diverse prompts"), ``prompt_seed`` draws others. A
question without a mark at its end gets its "?".
"""

import dataclasses
import zlib
from typing import TYPE_CHECKING, Literal

from mmjax.data.example import BadSample, Example, Text
from mmjax.data.lynx import PROMPTS

if TYPE_CHECKING:
    from mmjax.data.sources import Source

OPTIONS = ("prompts", "prompt_choice", "prompt_seed")
_PLACE = "{question}"


class Prompted:
    """The records of ``source``, asked in other words; ``info`` stays as it is.

    Attributes:
      name, kinds, notices: the source's.
    """

    def __init__(
        self,
        source: "Source",
        prompts: str,
        prompt_choice: Literal["one", "many"] = "many",
        prompt_seed: int = 0,
    ):
        """
        Args:
          source: of single questions, or of pictures alone.
          prompts: a task.
          prompt_choice: whether one prompt serves all records.
          prompt_seed: of the choice.
        """
        if prompts not in PROMPTS:
            raise ValueError(f"prompts must be one of {', '.join(PROMPTS)}, got {prompts!r}")
        if prompt_choice not in ("one", "many"):
            raise ValueError(f"prompt_choice must be 'one' or 'many', got {prompt_choice!r}")
        self._source, self._seed = source, prompt_seed
        self._prompts = PROMPTS[prompts] if prompt_choice == "many" else PROMPTS[prompts][:1]
        self.name, self.kinds = source.name, source.kinds
        self.notices = getattr(source, "notices", ())

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        drawn = zlib.crc32(f"{self._seed}/{index}".encode())
        return asked_with(self._prompts[drawn % len(self._prompts)], self._source[index])


def asked_with(prompt: str, example: Example) -> Example:
    """``example`` with ``prompt`` in place of the user's text, or around it.

    Raises:
      BadSample: several questions, none where the prompt wants one, or one that it has no place
        for.
    """
    places = [n for n, turn in enumerate(example.turns) if turn.role == "user"]
    if len(places) != 1:
        raise BadSample(example.id, None, f"{len(places)} questions, prompts are for one")
    turn = example.turns[places[0]]
    texts = [n for n, part in enumerate(turn.parts) if isinstance(part, Text) and part.text.strip()]
    if bool(texts) != (_PLACE in prompt):
        what = "it asks nothing" if not texts else "it has a text of its own"
        raise BadSample(example.id, None, f"{what}: the prompt {prompt!r} is not for it")
    parts = list(turn.parts)
    if texts:
        before, after = prompt.split(_PLACE)
        last = parts[texts[-1]].text.rstrip()
        parts[texts[-1]] = Text(last + ("" if last[-1] in ".?!:" else "?") + after)
        parts[texts[0]] = Text(before + parts[texts[0]].text.lstrip())
    else:
        parts.append(Text(prompt))
    turns = list(example.turns)
    turns[places[0]] = dataclasses.replace(turn, parts=tuple(parts))
    return dataclasses.replace(example, turns=tuple(turns))
