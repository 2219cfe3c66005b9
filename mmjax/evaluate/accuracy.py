"""Exact-match accuracy by kind of question.

The mean over kinds is what to look at: most yes/no questions of easy-VQA can be guessed from their
  wording.
"""

import dataclasses
import re
from collections.abc import Iterable

from mmjax.evaluate.runner import Prediction

_WORD = r"\w+"


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Counts, and the figures that follow from them.

    Attributes:
      kinds: kind of question -> (right answers, questions), in order of appearance.
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

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """For ``metrics.jsonl``: values between 0 and 1."""
        each = {
            f"{prefix}/accuracy/{kind}": right / count
            for kind, (right, count) in self.kinds.items()
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
    """Counts by ``info["kind"]``.

    Raises:
      ValueError: there are no predictions.
    """
    kinds: dict[str, tuple[int, int]] = {}
    for prediction in predictions:
        kind = prediction.example.info.get("kind", "all")
        right, count = kinds.get(kind, (0, 0))
        kinds[kind] = (right + is_right(prediction), count + 1)
    if not kinds:
        raise ValueError("nothing to score: the source has no record that could be read")
    return Accuracy(dict(sorted(kinds.items())))


def compare(rows: dict[str, list[Accuracy]]) -> str:
    """A table of systems, each tried several times: mean over the tries in percent, and their
    range.

    Counts are of one try; all tries answer the same questions.
    """
    first = next(iter(rows.values()))[0]
    kinds = list(first.kinds)
    head = ["", *kinds, "mean of kinds", "overall"]
    lines = [
        head,
        ["questions", *(str(first.kinds[kind][1]) for kind in kinds), "", str(first.count)],
    ]
    for name, tries in rows.items():
        figures = [[one.kinds[kind][0] / one.kinds[kind][1] for one in tries] for kind in kinds]
        figures += [[one.mean_of_kinds for one in tries], [one.overall for one in tries]]
        means = [f"{100 * sum(values) / len(values):.1f}" for values in figures]
        spans = [f"{100 * min(values):.1f}-{100 * max(values):.1f}" for values in figures]
        lines += [[name, *means], [f"  {len(tries)} seeds", *spans]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) for line in lines
    )
