"""Dialogues with pictures, in the spellings of others, become examples.

A placeholder ``<image>`` in a user's text stands for the next picture, and there must be as many as
pictures. It is read in the user's text only, and in the one field where the format has it; to write
the seven characters themselves, use a list of parts as content:
``[{"type": "image"}, {"type": "text", "text": "what does <image> mean?"}]``.

``turns`` says what a dialogue of several exchanges becomes:

    each    (default) one example for each exchange: its question and answer, with all pictures
            shown up to there; what was said before is left out
    first   the first exchange alone, as LMEye took LLaVA's data; the others are counted
    all     one example with all turns, for templates that take dialogues

``system`` says what a system message becomes: ``keep`` (a turn of its own; templates without a
place for it refuse the record) or ``user`` (put before the first question).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from mmjax.data.example import Example, Media, Text, Turn
from mmjax.data.sources.records import checked

PLACEHOLDER = "<image>"
Turns = Literal["each", "first", "all"]


@dataclasses.dataclass(frozen=True)
class Message:
    """What is said, before pictures are put in: None in ``content`` stands for the next one."""

    role: str
    content: tuple[str | None, ...]


def check_options(turns: str, system: str = "keep") -> None:
    if turns not in ("each", "first", "all"):
        raise ValueError(f"turns must be 'each', 'first' or 'all', got {turns!r}")
    if system not in ("keep", "user"):
        raise ValueError(f"system must be 'keep' or 'user', got {system!r}")


def content_of(role: str, value: Any, where: str) -> tuple[str | None, ...]:
    """Text, with placeholders if it is the user's; or a list of parts, whose texts have none."""
    if isinstance(value, str):
        text = checked(where, value)
        if role != "user":
            return (text,)
        pieces = text.split(PLACEHOLDER)
        found: list[str | None] = []
        for number, piece in enumerate(pieces):
            if number:
                found.append(None)
                piece = piece.removeprefix("\n")
            if number < len(pieces) - 1:
                piece = piece.removesuffix("\n")
            found += [piece] if piece else []
        return tuple(found)
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected text or a list of parts, got {value!r:.60}")
    parts: list[str | None] = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image" and role == "user":
            parts.append(None)
        elif kind == "text":
            parts.append(checked(f"{where}, part {number}, 'text'", part.get("text")))
        else:
            raise ValueError(
                f"{where}, part {number}: expected a part of type 'text'"
                f"{' or image' if role == 'user' else ''}, got {part!r:.60}"
            )
    return tuple(parts)


def examples_of(
    name: str,
    messages: Sequence[Message],
    pictures: Sequence[Media],
    info: dict[str, str],
    *,
    turns: Turns,
    system: Literal["keep", "user"] = "keep",
) -> tuple[list[Example], int]:
    """(the examples of one dialogue, the number of exchanges that were left out).

    Raises:
      ValueError: turns in a wrong order, or placeholders and pictures that do not match.
    """
    spoken = list(messages)
    head = [spoken.pop(0)] if spoken and spoken[0].role == "system" else []
    expected = [("user", "assistant")[number % 2] for number in range(len(spoken))]
    roles = [message.role for message in spoken]
    if roles != expected or not roles:
        raise ValueError(
            "expected turns of user and assistant by turns, the user's first (and one system "
            f"message before them, if any), got {', '.join([m.role for m in messages][:8]) or 0}"
        )
    wanted = sum(part is None for message in spoken for part in message.content)
    if wanted != len(pictures):
        raise ValueError(
            f"{wanted} {PLACEHOLDER} placeholders in the user's text, but {len(pictures)} pictures"
        )
    remaining = iter(pictures)
    made = [
        Turn(
            message.role,
            tuple(next(remaining) if part is None else Text(part) for part in message.content),
        )
        for message in spoken
    ]
    opening = [Turn("system", tuple(Text(part) for part in m.content)) for m in head]
    if opening and system == "user":
        (first,) = opening
        made[0] = Turn("user", (*first.parts, Text("\n"), *made[0].parts))
        opening = []
    exchanges = [made[i : i + 2] for i in range(0, len(made), 2)]
    if turns == "all":
        return [Example(name, (*opening, *made), info)], 0
    found = []
    for number, (asked, *answered) in enumerate(exchanges[: 1 if turns == "first" else None]):
        earlier = [part for turn in made[: 2 * number] for part in turn.parts]
        shown = tuple(part for part in earlier if isinstance(part, Media))
        turn = dataclasses.replace(asked, parts=(*shown, *asked.parts))
        example = Example(
            f"{name}#{number + 1}" if number else name, (*opening, turn, *answered), info
        )
        said = {"question": example.text("user")}
        said |= {"answer": example.text("assistant")} if answered else {}
        found.append(dataclasses.replace(example, info=info | said))
    return found, len(exchanges) - len(found)


def notices(left_out: int) -> list[str]:
    return [f"turns='first': {left_out:,} later exchanges are left out"] if left_out else []
