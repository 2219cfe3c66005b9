"""Takes what a text model wrote apart, and leaves out what is not good enough (LRV reference,
sections 1.5 and 1.6)."""

import dataclasses
import itertools
import re

_LABEL = re.compile(
    r"""^[ \t]*(?:[-*\#>•][ \t]*)*          # bullets, headings, quotes
        (?:\(?\d+[.):][ \t]*)?[*_]*         # numbering, emphasis
        (instruction|question|answer|reason|task)
        [ \t]*(?:example)?[ \t]*\d*[ \t]*[*_]*[ \t]*[:\uff1a][ \t]*[*_]*[ \t]*(.*)$""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_NOISE = re.compile(r"(?:\(?\d+[.):]|[-*_=#]+|```\w*)?")  # a line between groups
_FIELDS = {"question": "instruction", "reason": "answer"}


@dataclasses.dataclass(frozen=True)
class Group:
    """An instruction. ``answer``: of a negative one, the reason; ``task``: empty there."""

    instruction: str
    answer: str
    task: str = ""


def parse_reply(text: str, *, positive: bool) -> tuple[list[Group], int]:
    """The groups of a reply, and how many are incomplete, which are dropped.

    Tolerated are numbering, values beside or below their label, case, emphasis, bullets, and blank
    lines missing or too many.
    """
    labels = list(_LABEL.finditer(text))
    groups: list[dict[str, str]] = []
    for label, following in itertools.zip_longest(labels, labels[1:]):
        end = len(text) if following is None else following.start()
        name = label[1].lower()
        name = _FIELDS.get(name, name)
        if name == "instruction" or not groups or name in groups[-1]:
            groups.append({})
        groups[-1][name] = _value(label[2], text[label.end() : end])
    needed = ("instruction", "answer", *(("task",) if positive else ()))
    found = [
        Group(*(group[name] for name in needed))
        for group in groups
        if all(group.get(name) for name in needed)
    ]
    return found, len(groups) - len(found)


def _value(beside: str, below: str) -> str:
    lines = [line.strip() for line in (beside, *below.splitlines())]
    text = " ".join(line for line in lines if not _NOISE.fullmatch(line)).strip("*_ ")
    quoted = len(text) > 1 and text[0] + text[-1] in ('""', "“”") and text.count(text[0]) <= 2
    return text[1:-1].strip() if quoted else text


_MENTIONS = re.compile(
    r"\bbounding[ -]box|\bexisting descriptions?\b"
    r"|\b(?:the|these|given|provided|above|region) (?:region )?captions?\b",
    re.IGNORECASE,
)
_FACES = re.compile(r"\bfacial expressions?\b|\bexpressions? on \w+ faces?\b", re.IGNORECASE)
_COORDINATES = re.compile(
    r"\b[xy]\s*[:=]\s*\d|\b(?:width|height)\s*[:=]\s*\d|\bcoordinates?\b|\(\s*\d+\s*,\s*\d+\s*\)",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Quality:
    """What is left out.

    Attributes:
      max_words: longer answers; 0 keeps all.
      mentions: texts that speak of captions, boxes or descriptions, which nobody sees.
      faces: of facial expressions, which captions seldom tell.
      coordinates: with numbers for places, which GPT-4 often got wrong.
    """

    max_words: int = 30
    mentions: bool = True
    faces: bool = True
    coordinates: bool = False

    def problem(self, group: Group) -> str | None:
        """Why ``group`` is left out."""
        both = f"{group.instruction}\n{group.answer}"
        if self.max_words and len(group.answer.split()) > self.max_words:
            return f"an answer of more than {self.max_words} words"
        for wanted, pattern, name in (
            (self.mentions, _MENTIONS, "it speaks of captions, boxes or descriptions"),
            (self.faces, _FACES, "it speaks of facial expressions"),
            (self.coordinates, _COORDINATES, "it has coordinates"),
        ):
            if wanted and pattern.search(both):
                return name
        return None
