"""How mPLUG-Owl is asked (mPLUG-Owl reference, sections 2 and 3): lines, one for each picture and
for each text, any number of both, in the user's order.

    <s> [SYSTEM\\n]Human: x x x x\\nHuman: QUESTION\\nAI: ANSWER</s>\\nHuman: NEXT\\nAI: ANSWER</s>
                          '--picture                    '--predicted, as is every answer
"""

import dataclasses
import re
import zlib
from typing import ClassVar, Literal

from mmjax.data.example import BadSample, Example, Media, Text
from mmjax.data.segments import Encoded, Segment, Template, exchanges, is_silent
from mmjax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model is to say, or has said."""

    text: str


@dataclasses.dataclass(frozen=True)
class OwlPrompt(Template):
    """See the module. Pictures may touch each other, and may come first or last: their places are
    named by slots, so that none is taken for another's, as in the original.

    Strings between pictures are tokenized each by itself. The original's training cuts them, too,
    where a line begins and before an answer, the answer being tokenized alone and ended with eos;
    its chat does not, and shows earlier answers without eos.

    Attributes:
      tokens_per_picture: q, 65 of published models.
      system: line before all others, if it is not empty; a system turn of the example takes its
        place. (Upstream's sentences are not ours to give away.)
      before_picture, after_picture: around each picture, on its line.
      before_text: before each text of the user.
      before_answer: before each answer; "" puts an answer where the last line ends.
      newline: between lines.
      trailing_space: whether the prompt that is to be answered ends with the blank of
        ``before_answer``, as in training; LRV V2's own evaluation leaves it out.
      cut_turns: when strings are cut at turns, see above: ``training`` (the original's way),
        ``always`` (questions are asked as they were trained), ``never``.
      requests: what is asked of pictures that come without a text (by the sample's id, one of
        these); if there are none, nothing is.
    """

    takes_history: ClassVar[bool] = True

    tokens_per_picture: int
    system: str = ""
    before_picture: str = "Human: "
    after_picture: str = ""
    before_text: str = "Human: "
    before_answer: str = "AI: "
    newline: str = "\n"
    trailing_space: bool = True
    cut_turns: Literal["training", "always", "never"] = "training"
    requests: tuple[str, ...] = ()

    def __post_init__(self):
        """Raises ValueError that lists all that is wrong."""
        problems = []
        if self.tokens_per_picture < 1:
            problems.append(f"tokens_per_picture is {self.tokens_per_picture}, it must be above 0")
        if self.cut_turns not in ("training", "always", "never"):
            problems.append(
                f"cut_turns must be 'training', 'always' or 'never', got {self.cut_turns!r}"
            )
        if problems:
            raise ValueError("\n  ".join(problems))

    def encode(
        self, example: Example, tokenizer: Tokenizer, *, generating: bool = False
    ) -> Encoded:
        target, media = [Segment((tokenizer.bos_id,))], []
        for piece in self.pieces(example, generating=generating):
            if isinstance(piece, Media):
                start = len(media) * self.tokens_per_picture
                target += [
                    Segment((tokenizer.pad_id,), slot=("media", start + i))
                    for i in range(self.tokens_per_picture)
                ]
                media.append(piece)
            elif isinstance(piece, Answer):
                ids = (*tokenizer.encode(piece.text), tokenizer.eos_id)
                target.append(Segment(ids, is_target=not generating))
            elif ids := tokenizer.encode(piece):
                target.append(Segment(tuple(ids)))
        return Encoded(target, media=tuple(media))

    def pieces(self, example: Example, *, generating: bool = False) -> list[str | Media | Answer]:
        """Pictures, answers that stand alone, and the strings between them, each of which is
        tokenized by itself.

        Raises:
          BadSample: turns that are no dialogue, a video, nothing to answer to, or no answer.
        """
        turns = exchanges(example)
        if not generating and turns[-1][1] is None:
            raise BadSample(example.id, None, "it has no assistant text")
        if videos := [media.key for media in example.media if media.is_video]:
            raise BadSample(example.id, None, f"mPLUG-Owl takes no videos: {', '.join(videos)}")
        if is_silent(example) and not (example.media or self.requests):
            raise BadSample(example.id, None, "it has neither a picture nor a user text")
        is_cut = self.cut_turns == "always" or (self.cut_turns == "training" and not generating)
        said: list[str | Media | Answer] = [example.text("system") or self.system]
        for number, (parts, answer) in enumerate(turns):
            if number == 0 and self.requests and is_silent(example):
                which = zlib.crc32(example.id.encode()) % len(self.requests)
                parts = (*parts, Text(self.requests[which]))
            for part in parts:
                if isinstance(part, Media):
                    said += [self._line(said, self.before_picture), part, self.after_picture]
                elif part.text.strip():
                    said.append(self._line(said, self.before_text) + part.text)
            said.append(self._line(said, self.before_answer) if self.before_answer else "")
            if generating and number == len(turns) - 1:
                said[-1] = said[-1] if self.trailing_space else said[-1].rstrip(" ")
            elif generating and not is_cut:
                said.append(answer)
            else:
                said.append(Answer(answer))
        return self._cut(_joined(said)) if is_cut else _joined(said)

    def _line(self, said: list[str | Media | Answer], start: str) -> str:
        """The start of a line, ended the one before it."""
        return (self.newline if any(said) else "") + start

    def _cut(self, pieces: list[str | Media | Answer]) -> list[str | Media | Answer]:
        """Strings cut at turns, as upstream's training cuts its texts."""
        marks = [self.before_answer, self.before_text and self.newline + self.before_text]
        pattern = "|".join(re.escape(mark) for mark in marks if mark)
        if not pattern:
            return pieces
        found: list[str | Media | Answer] = []
        for piece in pieces:
            strings = re.split(f"({pattern})", piece) if isinstance(piece, str) else [piece]
            found += [string for string in strings if string]
        return found


def _joined(said: list[str | Media | Answer]) -> list[str | Media | Answer]:
    """Strings that follow each other as one, empty ones left out."""
    joined: list[str | Media | Answer] = []
    for piece in said:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        elif piece:
            joined.append(piece)
    return joined
