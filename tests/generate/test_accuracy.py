"""Scores by kind, and by part of a mixture."""

import pytest

from mmjax.data.example import Example, Text, Turn
from mmjax.evaluate.accuracy import Accuracy, compare, says_yes, score
from mmjax.evaluate.runner import Prediction
from mmjax.train.report import accuracy_tables


def prediction(answer: str, truth: str, **info: str) -> Prediction:
    example = Example("id", (Turn("user", (Text("?"),)),), {"answer": truth, **info})
    return Prediction(example, answer)


@pytest.fixture
def mixed() -> Accuracy:
    return score(
        [
            prediction("red", "red", kind="colour", part="pictures"),
            prediction(" Red", "red", kind="colour", part="pictures"),
            prediction("no", "yes", kind="plain", part="pictures"),
            prediction("left", "left", kind="side", part="clips"),
            prediction("left", "right", kind="side", part="clips"),
        ]
    )


def test_kinds_are_counted():
    plain = score([prediction("a", "a", kind="one"), prediction("b", "c", kind="two")])
    assert plain.kinds == {"one": (1, 1), "two": (0, 1)} and plain.parts == {}
    assert score([prediction("a", "b")]).kinds == {"all": (0, 1)}
    with pytest.raises(ValueError, match="nothing to score"):
        score([])


def test_parts_of_a_mixture_are_counted_apart(mixed):
    pictures, clips = mixed.parts["pictures"], mixed.parts["clips"]
    assert pictures.kinds == {"colour": (2, 2), "plain": (0, 1)} and clips.kinds == {"side": (1, 2)}
    assert (pictures.mean_of_kinds, clips.mean_of_kinds, mixed.overall) == (0.5, 0.5, 0.6)
    metrics = mixed.metrics("eval")
    assert metrics["eval/accuracy/pictures: colour"] == 1
    assert metrics["eval/accuracy_mean_of_kinds/clips"] == 0.5
    titles = [line for line in accuracy_tables(mixed).splitlines() if line in mixed.parts]
    assert titles == ["clips", "pictures"]


def test_yes_to_what_is_not_there():
    said = [
        ("yes", "neg1"),
        ("Yes.", "neg1"),
        ("yesterday", "neg1"),
        ("no", "neg2"),
        ("yes", "present"),
    ]
    counted = says_yes(
        [prediction(answer, "no", kind=kind) for answer, kind in said], ("neg2", "neg1")
    )
    assert counted.kinds == {"neg1": (2, 3), "neg2": (0, 1)}
    with pytest.raises(ValueError, match="no question of neg3"):
        says_yes([], ("neg3",))


def test_a_comparison_has_a_column_for_each_part(mixed):
    head, counts, row = compare({"ours": [mixed]}).splitlines()
    assert head.split() == ["clips", "pictures", "mean", "of", "kinds", "overall"]
    assert counts.split() == ["questions", "2", "3", "5"]
    assert row.split() == ["ours", "50.0", "50.0", "50.0", "60.0"]
