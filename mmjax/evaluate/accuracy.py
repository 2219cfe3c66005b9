"""Exact-match accuracy by kind of question.

The mean over kinds is what to look at: most yes/no questions of easy-VQA can be guessed from their
  wording.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable

from mmjax.evaluate.runner import Prediction

_IN = ": "  # between the part of a mixture and the kind
_WORD = r"\w+"


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Counts, and the figures that follow from them.

    Attributes:
      kinds: kind of question -> (right answers, questions), sorted; of a mixture of sources
        "PART: KIND".
    """

    kinds: dict[str, tuple[int, int]]

    @property
    def count(self) -> int:
        return sum(count for _, count in self.kinds.values())

    @property
    def overall(self) -> float:
        return sum(right for right, _ in self.kinds.values()) / self.count

    @property
    def mean_of_kinds(self) -> float:
        return sum(right / count for right, count in self.kinds.values()) / len(self.kinds)

    @property
    def parts(self) -> dict[str, "Accuracy"]:
        """That of each part of a mixture, kinds by their own names; none if it is no mixture."""
        parts: dict[str, dict[str, tuple[int, int]]] = {}
        for name, counts in self.kinds.items():
            part, is_mixed, kind = name.partition(_IN)
            if is_mixed:
                parts.setdefault(part, {})[kind] = counts
        return {part: Accuracy(kinds) for part, kinds in parts.items()}

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """For ``metrics.jsonl``: values between 0 and 1."""
        each = {
            f"{prefix}/accuracy/{kind}": right / count
            for kind, (right, count) in self.kinds.items()
        }
        each |= {
            f"{prefix}/accuracy_mean_of_kinds/{part}": accuracy.mean_of_kinds
            for part, accuracy in self.parts.items()
        }
        return each | {
            f"{prefix}/accuracy": self.overall,
            f"{prefix}/accuracy_mean_of_kinds": self.mean_of_kinds,
        }


def is_right(prediction: Prediction) -> bool:
    """The answer is the reference answer, but for case and surrounding blanks; or has the words
    in it that the record says it must (``info["contains"]``)."""
    if (words := prediction.example.info.get("contains")) is not None:
        return f" {words.lower()} " in f" {' '.join(re.findall(_WORD, prediction.answer.lower()))} "
    return prediction.answer.strip().lower() == prediction.example.info["answer"].strip().lower()


def score(predictions: Iterable[Prediction]) -> Accuracy:
    """Counts by ``info["kind"]``, and ``info["part"]`` if there is one.

    Raises:
      ValueError: there are no predictions.
    """
    kinds: dict[str, tuple[int, int]] = {}
    for prediction in predictions:
        info = prediction.example.info
        kind = info.get("kind", "all")
        kind = f"{info['part']}{_IN}{kind}" if "part" in info else kind
        right, count = kinds.get(kind, (0, 0))
        kinds[kind] = (right + is_right(prediction), count + 1)
    if not kinds:
        raise ValueError("nothing to score: the source has no record that could be read")
    return Accuracy(dict(sorted(kinds.items())))


def says_yes(predictions: Iterable[Prediction], kinds: Collection[str]) -> Accuracy:
    """How often the first word of the answers to ``kinds`` is yes, which they all should not be.

    Raises:
      ValueError: a kind is not among the predictions.
    """
    counts = dict.fromkeys(sorted(kinds), (0, 0))
    for prediction in predictions:
        if (kind := prediction.example.info.get("kind")) in counts:
            yes, count = counts[kind]
            counts[kind] = (yes + bool(re.match(r"\s*yes\b", prediction.answer, re.I)), count + 1)
    if missing := [kind for kind, (_, count) in counts.items() if not count]:
        raise ValueError(f"there is no question of {', '.join(missing)}")
    return Accuracy(counts)


def compare(rows: dict[str, list[Accuracy]]) -> str:
    """A table of systems, each tried several times: mean over the tries in percent, and their
    range. Of a mixture a column is the mean over the kinds of a part.

    Counts are of one try; all tries answer the same questions.
    """
    first = next(iter(rows.values()))[0]
    columns = [*(first.parts or first.kinds), "mean of kinds", "overall"]
    counts = [str(each.count) for each in first.parts.values()] or [
        str(count) for _, count in first.kinds.values()
    ]
    lines = [["", *columns], ["questions", *counts, "", str(first.count)]]
    for name, tries in rows.items():
        figures = list(zip(*map(_figures, tries), strict=True))
        means = [f"{100 * sum(values) / len(values):.1f}" for values in figures]
        lines.append([name, *means])
        if len(tries) > 1:
            spans = [f"{100 * min(values):.1f}-{100 * max(values):.1f}" for values in figures]
            lines.append([f"  {len(tries)} seeds", *spans])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) for line in lines
    )


def _figures(accuracy: Accuracy) -> list[float]:
    parts = [each.mean_of_kinds for each in accuracy.parts.values()]
    kinds = [right / count for right, count in accuracy.kinds.values()]
    return [*(parts or kinds), accuracy.mean_of_kinds, accuracy.overall]
