"""How Visual-LLaMA is asked (Visual-LLaMA reference, sections 1.5, 2 and 4): the picture in front,
then one text.

    <s> x x x x [eoi] CAPTION </s>                                     stage 1
    <s> x x x x [eoi] [quest] QUESTION [ans] ANSWER </s>               stage 2
    <s>               [quest] INSTRUCTION [ans] ANSWER </s>            without a picture
    <s> x x x x [eoi] THE BEGINNING OF A CAPTION                       a prompt of stage 1
"""

import dataclasses
from typing import ClassVar, Literal

from mmjax.data.example import BadSample, Example, Media
from mmjax.data.segments import Encoded, Segment, Template, exchanges
from mmjax.data.tokenizer import Tokenizer

Mark = int | str


@dataclasses.dataclass(frozen=True)
class VisualLlamaPrompt(Template):
    """See the module. What stands between two marks is stripped of blanks and tokenized by itself,
    as upstream's tokenizer does it around its special tokens.

    ``loss`` says what is to be predicted:

        answers    each answer and its end; questions are read only
        text       all that follows the picture: ``[eoi]``, marks, questions and answers
        upstream   as ``text``; and, as upstream shifts its labels past the picture, ``<s>`` after
                   the picture's last vector but one, and nothing where the token is id 0

    The three are the same to a caption but for ``[eoi]`` and ``<s>``, which no text follows from.

    Attributes:
      tokens_per_picture: q.
      after_picture: ``[eoi]``.
      before_picture: ``[boi]``, which upstream names and never shows; None = nothing.
      before_question, before_answer: ``[quest]`` and ``[ans]``; None = nothing.
      add_eos: whether an answer ends with eos. Upstream's texts do not, so that its models never
        come to an end.
      loss: see above.

    A mark is the id of an added row, or a text.
    """

    takes_history: ClassVar[bool] = True

    tokens_per_picture: int
    after_picture: Mark | None
    before_picture: Mark | None = None
    before_question: Mark | None = None
    before_answer: Mark | None = None
    add_eos: bool = True
    loss: Literal["answers", "text", "upstream"] = "answers"

    def __post_init__(self):
        """Raises ValueError that lists all that is wrong."""
        problems = []
        if self.tokens_per_picture < 2:
            problems.append(f"tokens_per_picture is {self.tokens_per_picture}, it is at least 2")
        if self.loss not in ("answers", "text", "upstream"):
            problems.append(f"loss must be 'answers', 'text' or 'upstream', got {self.loss!r}")
        if problems:
            raise ValueError("\n  ".join(problems))

    def encode(
        self, example: Example, tokenizer: Tokenizer, *, generating: bool = False
    ) -> Encoded:
        turns = self._turns(example, generating=generating)
        target = [Segment((tokenizer.bos_id,))]
        if example.media:
            target += self._picture(tokenizer)
        for number, (asked, answer) in enumerate(turns):
            question = (self._mark(self.before_question, tokenizer) + tokenizer.encode(asked)
                        if asked else [])  # fmt: skip
            if asked or number:  # a caption follows its picture without a mark
                question += self._mark(self.before_answer, tokenizer)
            target += self._said(question, tokenizer)
            if not (generating and number == len(turns) - 1):
                end = [tokenizer.eos_id] if self.add_eos else []
                target += self._said(tokenizer.encode(answer.strip()) + end, tokenizer, True)
        if generating:
            target = [dataclasses.replace(s, is_target=False) for s in target]
        return Encoded(target, media=example.media)

    def _turns(self, example: Example, *, generating: bool) -> list[tuple[str, str | None]]:
        """(what is asked, the answer) of each exchange.

        Raises:
          BadSample: turns that are no dialogue, media that are not one picture, a system text,
            nothing to say or to answer to.
        """
        found = exchanges(example)
        problems = []
        if len(example.media) > 1 or any(media.is_video for media in example.media):
            count = ", ".join(media.key for media in example.media)
            problems.append(f"Visual-LLaMA takes one picture or none, not {count}")
        if any(isinstance(part, Media) for parts, _ in found[1:] for part in parts):
            problems.append(
                "its picture comes after the first question, Visual-LLaMA sees it first"
            )
        if example.text("system").strip():
            problems.append("it has a system text, for which Visual-LLaMA has no place")
        if not generating and found[-1][1] is None:
            problems.append("it has no assistant text")
        turns = [
            ("".join(part.text for part in parts if not isinstance(part, Media)).strip(), answer)
            for parts, answer in found
        ]
        if not example.media and generating and not turns[-1][0]:
            problems.append("it has neither a picture nor a user text")
        if problems:
            raise BadSample(example.id, None, "; ".join(problems))
        return turns

    def _picture(self, tokenizer: Tokenizer) -> list[Segment]:
        """The picture between its marks."""
        upstream, last = self.loss == "upstream", self.tokens_per_picture - 1
        slots = [Segment((tokenizer.pad_id,), slot=("media", i)) for i in range(last)]
        # Its label is the text's first one, from which upstream moved <s> to the front.
        slots.append(Segment((tokenizer.bos_id,), upstream, ("media", last)))
        before = self._said(self._mark(self.before_picture, tokenizer), tokenizer)
        return [
            *(dataclasses.replace(segment, is_target=False) for segment in before),
            *slots,
            *self._said(self._mark(self.after_picture, tokenizer), tokenizer),
        ]

    def _mark(self, mark: Mark | None, tokenizer: Tokenizer) -> list[int]:
        if isinstance(mark, str):
            return tokenizer.encode(mark)
        return [] if mark is None else [mark]

    def _said(self, ids: list[int], tokenizer: Tokenizer, is_answer: bool = False) -> list[Segment]:
        is_target = is_answer or self.loss != "answers"
        if self.loss == "upstream":
            return [Segment((i,), is_target, None, float(i != 0)) for i in ids]
        return [Segment(tuple(ids), is_target)] if ids else []
