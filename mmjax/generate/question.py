"""What is asked: a question from the command line, the last one of a dialogue; and its draws."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmjax.data.example import Example, Media, Text, Turn


def from_command_line(
    parts: Sequence[str],
    image: str | None = None,
    question: str | None = None,
    *,
    instead: Sequence[str] = (),
) -> Example | None:
    """One user's turn of ``text=...``, ``image=FILE`` and ``video=FILE`` in the order given, or of
    the short form: a picture, a text, or a picture and then a text.

    Args:
      instead: flags of other ways to ask that were given; with one of them, the result is None.

    Raises:
      ValueError: both forms, several ways or none, or a part of another kind.
    """
    given = {"image": image, "text": question}
    short = [f"{kind}={value}" for kind, value in given.items() if value is not None]
    if parts and short:
        raise ValueError("--part and --image or --question say the same; give one")
    if len(instead) + bool(parts or short) > 1:
        asked = ["a question (--part, --image, --question)"] if parts or short else []
        raise ValueError(f"{' and '.join([*instead, *asked])} exclude each other; give one")
    if instead:
        return None
    if not parts and not short:
        raise ValueError(
            "nothing is asked: give --part (text=..., image=FILE or video=FILE, as often as "
            "needed), or --image and --question, or --jsonl, or --chat"
        )
    return Example("the question", (Turn("user", tuple(map(_part, parts or short))),))


def picture(path: str | Path) -> Media:
    return Media(str(path), Path(path))


def video(path: str | Path) -> Media:
    return Media(str(path), Path(path), is_video=True)


def last_question(dialogue: Example, *, takes_history: bool) -> Example:
    """What a model is to answer of ``dialogue``: all of it but an answer at its end.

    With a template that does not take history, the user's last turn alone, with the pictures of
    the turns before it; a system turn stays.
    """
    turns = dialogue.turns
    if turns[-1].role == "assistant":
        turns = turns[:-1]
    if not takes_history:
        opening = tuple(turn for turn in turns[:1] if turn.role == "system")
        earlier = [part for turn in turns[:-1] for part in turn.parts if isinstance(part, Media)]
        last = dataclasses.replace(turns[-1], parts=(*earlier, *turns[-1].parts))
        turns = (*opening, last)
    return dataclasses.replace(dialogue, turns=turns)


def row_seed(seed: int, row: int) -> int:
    """The seed of the draws of one of many questions: its own, whatever else is asked. i32."""
    return int(np.random.SeedSequence((seed, row)).generate_state(1)[0] >> 1)


def _part(given: str) -> Text | Media:
    kind, equals, value = given.partition("=")
    made = {"text": Text, "image": picture, "video": video}
    if not equals or kind not in made:
        raise ValueError(f"--part {given!r:.60}: expected text=..., image=FILE or video=FILE")
    if not value:
        raise ValueError(f"an empty {kind} is asked about: there is nothing after the =")
    return made[kind](value)
