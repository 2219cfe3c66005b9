"""Templates turn an `Example` into segments of token ids: a system's prompt is written down here.

Labels come from segments, never from searching the text again, and each text part is tokenized
alone with special tokens off. A template is plain data, so it travels inside a checkpoint:
`to_json` and `from_json`.

    template            used by                                 prefix | request | target
    `LMEyeCaption`      LMEye, stage 1 (alignment)              target
    `LMEyeQuestion`     LMEye, stage 2 (instruction), chat      prefix, request, target
    `PlainText`         language-model foundation               target
    `CaptionPair`       CLIP foundation                         request, target (two texts)

Prompts and layouts: LMEye reference, section 3.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

from mmjax.data.example import BadSample, Example, Media
from mmjax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Segment:
    """A run of tokens with one meaning.

    Attributes:
      ids: token ids; exactly one for a slot.
      is_target: whether these tokens are to be predicted.
      slot: (slot table, row) whose embedding belongs at this position, or None for text.
      weight: of each of these tokens in the loss, if they are targets.
    """

    ids: tuple[int, ...]
    is_target: bool = False
    slot: tuple[str, int] | None = None
    weight: float = 1.0

    def __post_init__(self):
        if self.slot is not None and (len(self.ids) != 1 or self.is_target):
            raise ValueError(f"slot {self.slot} must be one token that is no target, got {self}")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One row before padding: its pictures, and the segments of its texts (None: no such text)."""

    target: list[Segment]
    prefix: list[Segment] | None = None
    request: list[Segment] | None = None
    media: tuple[Media, ...] = ()


class Template(Protocol):
    """
    Attributes:
      takes_history: whether earlier questions and answers may stand before a question. Where not,
        each question of a conversation is asked on its own.
    """

    takes_history: ClassVar[bool]

    def encode(
        self, example: Example, tokenizer: Tokenizer, *, generating: bool = False
    ) -> Encoded:
        """``generating``: stop before the answer, which ``example`` then need not have.

        Raises:
          BadSample: the example does not fit the template.
        """


@dataclasses.dataclass(frozen=True)
class LMEyeCaption:
    """Stage 1: ``[bos] [before] <img> [after] CAPTION </s>``.

    The original has neither bos nor texts: the picture's vector stands at the first position.

    Attributes:
      image_token: id of the row that the picture's vector is added to.
      add_bos: whether the text starts with bos.
      before: text before the picture.
      after: text after the picture.
    """

    takes_history: ClassVar[bool] = False

    image_token: int
    add_bos: bool = False
    before: str = ""
    after: str = ""

    def encode(
        self, example: Example, tokenizer: Tokenizer, *, generating: bool = False
    ) -> Encoded:
        _check(example, pictures=1, need_question=False, need_answer=not generating)
        before, after = (
            [Segment(tuple(tokenizer.encode(text)))] if text else []
            for text in (self.before, self.after)
        )
        picture = Segment((self.image_token,), slot=("media", 0))
        target = [*_bos(self.add_bos, tokenizer), *before, picture, *after]
        if not generating:
            target += _answer(example, tokenizer)
        return Encoded(target, media=example.media)


@dataclasses.dataclass(frozen=True)
class LMEyeQuestion:
    """Stage 2 and questions: ``[bos] Image: <img>\\n QUESTION <img-d> x K\\nAnswer: ANSWER </s>``.

    The first pass reads prefix + request, the second prefix + target; a causal model's first pass
    depends on nothing after the request, so one request slot stands for the K that the original
    shows it.

    ``interaction`` says what the request can see:

        interaction           prefix                   target
        request  (the paper)  Image: <img> QUESTION    slots Answer: ANSWER
        blind    (control)    Image: <img>             QUESTION slots Answer: ANSWER
        none     (no IPN)     Image: <img> QUESTION    Answer: ANSWER, and no request

    ``blind`` has the parameters and the reading order of ``request``, but its responses cannot
    depend on the question. ``none`` asks a model of stage 1 directly.

    Attributes:
      image_token: id of the row that the picture's vector is added to.
      slot_token: id of the row that request and responses are added to (``<img-d>``).
      num_responses: K.
      add_bos: whether the prefix starts with bos.
      before: text before the picture.
      after: text after the picture, with ``{text}`` where the question goes.
      cue: text before the answer.
      interaction: see above.
    """

    takes_history: ClassVar[bool] = False

    image_token: int
    slot_token: int
    num_responses: int = 5
    add_bos: bool = True
    before: str = "Image: "
    after: str = "\n {text} "
    cue: str = "\nAnswer:"
    interaction: Literal["request", "blind", "none"] = "request"

    def __post_init__(self):
        if self.interaction not in ("request", "blind", "none"):
            raise ValueError(
                f"interaction must be 'request', 'blind' or 'none', got {self.interaction!r}"
            )
        if self.after.count("{text}") != 1:
            raise ValueError(f"'after' must contain {{text}} exactly once, got {self.after!r}")

    def encode(
        self, example: Example, tokenizer: Tokenizer, *, generating: bool = False
    ) -> Encoded:
        _check(example, pictures=1, need_question=True, need_answer=not generating)
        head, tail = self.after.split("{text}")
        question = [Segment(tuple(tokenizer.encode(head + example.text("user") + tail)))]
        prefix = [*_bos(self.add_bos, tokenizer), Segment(tuple(tokenizer.encode(self.before)))]
        prefix += [Segment((self.image_token,), slot=("media", 0))]
        request = [Segment((self.slot_token,), slot=("request", 0))]
        slots = [
            Segment((self.slot_token,), slot=("response", row)) for row in range(self.num_responses)
        ]
        ending = [Segment(tuple(tokenizer.encode(self.cue)))]
        if not generating:
            ending += _answer(example, tokenizer)
        if self.interaction == "blind":
            return Encoded(question + slots + ending, prefix, request, example.media)
        if self.interaction == "none":
            return Encoded(ending, prefix + question, None, example.media)
        return Encoded(slots + ending, prefix + question, request, example.media)


@dataclasses.dataclass(frozen=True)
class PlainText:
    """Language-model pretraining on text alone: every token but the first is predicted.

    eos follows each answer, and ends a document that ends without one.

    Attributes:
      add_bos: whether documents start with bos.
      answer_weight: weight in the loss of the answers (assistant turns) and their eos; all else
        weighs 1.
    """

    takes_history: ClassVar[bool] = True

    add_bos: bool = True
    answer_weight: float = 1.0

    def encode(
        self, example: Example, tokenizer: Tokenizer, *, generating: bool = False
    ) -> Encoded:
        _check(example, pictures=0, need_question=False, need_answer=False)
        turns = example.turns
        if generating and turns[-1].role == "assistant":
            turns = turns[:-1]
        weighted = [(tokenizer.bos_id, 1.0)] if self.add_bos else []
        for turn in turns:
            weight = self.answer_weight if turn.role == "assistant" else 1.0
            ids = [token for part in turn.parts for token in tokenizer.encode(part.text)]
            if turn.role == "assistant":
                ids.append(tokenizer.eos_id)
            weighted += [(token, weight) for token in ids]
        if not generating and turns[-1].role != "assistant":
            weighted.append((tokenizer.eos_id, 1.0))
        if not weighted:
            raise BadSample(example.id, None, "it has no text")
        first, *rest = weighted
        return Encoded([Segment((first[0],)), *(Segment((t,), True, None, w) for t, w in rest)])


@dataclasses.dataclass(frozen=True)
class CaptionPair:
    """CLIP pretraining: the target is the answer (a rich caption), the request the user's text.

    Both are ``bos text eos`` and neither is predicted: CLIP's loss compares texts with pictures.

    Attributes:
      bos_token: CLIP's own, not the language model's whose words it shares.
      eos_token: likewise; the largest id, by which CLIP finds the end of a text.
    """

    takes_history: ClassVar[bool] = False

    bos_token: int
    eos_token: int

    def encode(
        self, example: Example, tokenizer: Tokenizer, *, generating: bool = False
    ) -> Encoded:
        _check(example, pictures=1, need_question=True, need_answer=True)
        rich, short = (
            [Segment((self.bos_token, *tokenizer.encode(example.text(role)), self.eos_token))]
            for role in ("assistant", "user")
        )
        return Encoded(rich, None, short, example.media)


_REGISTRY = {
    "lmeye-caption": LMEyeCaption,
    "lmeye-question": LMEyeQuestion,
    "plain-text": PlainText,
    "caption-pair": CaptionPair,
}


def to_json(template: Template) -> dict[str, Any]:
    """``{"template": name, field: value, ...}``, fit for `json.dumps`."""
    name = next((name for name, cls in _REGISTRY.items() if type(template) is cls), None)
    if name is None:
        raise ValueError(
            f"{type(template).__name__} is no registered template; known: {sorted(_REGISTRY)}"
        )
    return {"template": name, **dataclasses.asdict(template)}


def from_json(data: Mapping[str, Any]) -> Template:
    """The inverse of `to_json`.

    Raises:
      ValueError: an unknown template, or fields that it does not have or lacks.
    """
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
    }
    name = fields.pop("template", None)
    if name not in _REGISTRY:
        raise ValueError(
            f"unknown template {name!r}; known: {sorted(_REGISTRY)}. Is the checkpoint newer?"
        )
    cls = _REGISTRY[name]
    known = {field.name for field in dataclasses.fields(cls)}
    needed = {
        field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING
    }
    unknown, missing = sorted(fields.keys() - known), sorted(needed - fields.keys())
    if unknown or missing:
        raise ValueError(f"template {name!r}: unknown fields {unknown}, missing fields {missing}")
    return cls(**fields)


def _bos(wanted: bool, tokenizer: Tokenizer) -> list[Segment]:
    return [Segment((tokenizer.bos_id,))] if wanted else []


def _answer(example: Example, tokenizer: Tokenizer) -> list[Segment]:
    ids = tokenizer.encode(example.text("assistant"))
    return [Segment((*ids, tokenizer.eos_id), is_target=True)]


def _check(example: Example, *, pictures: int, need_question: bool, need_answer: bool) -> None:
    """Raises BadSample unless the example is one exchange with this number of pictures and the
    texts needed; `PlainText` alone takes longer dialogues."""
    if len(example.media) != pictures:
        found = len(example.media)
        raise BadSample(
            example.id, None, f"it has {found} pictures, the template takes exactly {pictures}"
        )
    roles = [turn.role for turn in example.turns]
    if pictures and roles not in (["user"], ["user", "assistant"]):
        raise BadSample(
            example.id,
            None,
            f"it has turns of {', '.join(roles)}, the template takes one question and one answer; "
            "see the source's options turns (each | first) and system (user)",
        )
    for role, needed in (("user", need_question), ("assistant", need_answer)):
        if needed and not example.text(role).strip():
            raise BadSample(example.id, None, f"it has no {role} text")
