"""How to decode: one dataclass, checked as a whole."""

import dataclasses
from typing import Literal

RULES = ("transformers-5", "transformers-4.28")


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Names, defaults and meaning are those of transformers' ``GenerationConfig``.

    Lengths count new tokens: a row's answer must not depend on how its batch is padded.

    Attributes:
      max_new_tokens: how many tokens are made at most.
      min_new_tokens: no end before as many.
      do_sample: draw tokens; False takes the best.
      temperature: divides the scores before drawing; ``top_k``: only as many of the best are drawn
        from (0 = all; ties stay); ``top_p``: only the best that together have this probability.
        These three need ``do_sample``.
      repetition_penalty: scores of tokens that were said before are divided by it, or multiplied
        where negative; 1 = none.
      no_repeat_ngram_size: no run of as many tokens is said twice; 0 = off.
      num_beams: beams of a beam search (with ``do_sample``: beam sampling); 1 = none.
      length_penalty: a finished beam's score is its log probability / length ** length_penalty.
      early_stopping: when a row's search is over. True: when ``num_beams`` beams are finished;
        False: when the best running beam, at its present length, is worse than all of them;
        "never": when it could not get better at any length.
      num_return_sequences: answers for each prompt: drawn ones, or the best beams.
      eos_tokens: any of these ends an answer; ``stop_sequences``: and so does any of these runs of
        tokens (its end may be spelled in several ways).
      pad_token: what follows the end of an answer.
      rules: which release is followed where releases differ. ``transformers-4.28`` (to 4.31, those
        of the papers): the text begins with ``bos_token``, which is not shown to the model but
        counts in lengths, repetitions and n-grams; beams that run to the end are added to finished
        ones instead of competing for the first ``num_beams`` places; the length of a running beam
        counts the next token; beam sampling filters scores with the beam's own added.
      bos_token: needed by ``transformers-4.28``, unless a start of the text is given.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    eos_tokens: tuple[int, ...] = ()
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    pad_token: int = 0
    rules: Literal["transformers-5", "transformers-4.28"] = "transformers-5"
    bos_token: int | None = None

    def __post_init__(self):
        """Raises ValueError that lists all that is wrong."""
        problems = [
            f"{name} must be a whole number of at least {least}, got {value!r}"
            for name, least in _WHOLE.items()
            if not _is_whole(value := getattr(self, name)) or value < least
        ]
        problems += [
            f"{name} must be a number above 0, got {value!r}"
            for name in ("temperature", "repetition_penalty")
            if not _is_number(value := getattr(self, name)) or not 0 < value < float("inf")
        ]
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            problems.append(f"top_p must be above 0 and at most 1, got {self.top_p!r}")
        if not _is_number(self.length_penalty) or abs(self.length_penalty) == float("inf"):
            problems.append(f"length_penalty must be a number, got {self.length_penalty!r}")
        if self.early_stopping not in (True, False, "never"):
            problems.append(
                f"early_stopping must be True, False or 'never', got {self.early_stopping!r}"
            )
        if self.rules not in RULES:
            problems.append(f"rules must be one of {', '.join(RULES)}, got {self.rules!r}")
        if () in self.stop_sequences:
            problems.append("a stop sequence has no tokens")
        if problems:
            raise ValueError("generation settings:\n  " + "\n  ".join(problems))
        if self.min_new_tokens > self.max_new_tokens:
            problems.append(
                f"min_new_tokens = {self.min_new_tokens} is more than max_new_tokens = "
                f"{self.max_new_tokens}"
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            problems.append(
                f"num_return_sequences = {self.num_return_sequences}, but there are only "
                f"{self.num_beams} beams (num_beams)"
            )
        if self.num_beams == 1 and not self.do_sample and self.num_return_sequences > 1:
            problems.append(
                f"num_return_sequences = {self.num_return_sequences}: the best answer is one; give "
                "do_sample or num_beams"
            )
        if not self.do_sample:
            problems += [
                f"{name} = {getattr(self, name)} has no effect without do_sample"
                for name, default in (("temperature", 1.0), ("top_k", 50), ("top_p", 1.0))
                if getattr(self, name) != default
            ]
        if self.num_beams == 1:
            problems += [
                f"{name} = {getattr(self, name)} has no effect with num_beams = 1"
                for name, default in (("length_penalty", 1.0), ("early_stopping", False))
                if getattr(self, name) != default
            ]
        if problems:
            raise ValueError("generation settings:\n  " + "\n  ".join(problems))

    @property
    def num_ends(self) -> int:
        """How many tokens can end an answer."""
        return len({*self.eos_tokens, *(sequence[-1] for sequence in self.stop_sequences)})

    @property
    def is_legacy(self) -> bool:
        return self.rules == "transformers-4.28"


_WHOLE = dict(
    max_new_tokens=1,
    min_new_tokens=0,
    top_k=0,
    no_repeat_ngram_size=0,
    num_beams=1,
    num_return_sequences=1,
    pad_token=0,
)


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
