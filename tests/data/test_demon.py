"""DEMON's records."""

import json

import pytest

from mmjax.data.example import Text
from mmjax.data.sources import make_source


def write(tmp_path, *records, question_type="multi-choice", **metadata):
    path = tmp_path / "core.json"
    metadata = {
        "dataset": "WebQA",
        "task_instruction": ["Say which. ", "Answer. "],
        "question_type": question_type,
        "num_sample": len(records),
    } | metadata
    path.write_text(json.dumps({"metadata": metadata, "data": records}))
    return path


def record(context, images=("0.jpg", "1.jpg"), *, response="no", choices=None, **changes):
    instance = {"context": context, "images_path": list(images)}
    if choices is not None:
        instance["choice_list"] = choices
    given = dict(sample_id=3, task_instruction_id=1, task_instance=instance, response=response)
    return given | changes


def shown(example):
    turn = example.turns[0]
    return [part.text if isinstance(part, Text) else part.data.name for part in turn.parts]


def test_places_get_the_pictures_that_they_name(tmp_path):
    path = write(
        tmp_path,
        record("{image#1}{table#2}Is it? ", choices=["yes", "no"], sample_id="12"),
        record("{image#2} or {image#1}?", choices=["Image A: {image#2}"], response=4),
        record("{image#1} {image}?", ["0.jpg"], choices=["it's", "\u00e9"]),
        record("{image#1}{image#2}", ["same.png", "same.png"], choices=["a"]),
    )
    source = make_source(f"demon:{path}", "test")
    first, second, third, fourth = (source[i] for i in range(4))
    listed = "Is it? Choice list:['yes', 'no']. Your answer is:"
    assert shown(first) == ["Answer. ", "0.jpg", "1.jpg", listed]
    assert first.media[0].data == tmp_path / "images" / "0.jpg"
    assert first.id == "WebQA/12" and source.kinds == ["WebQA"] * 4
    question = f"Answer. {listed}"
    assert first.info == {
        "kind": "WebQA", "sample_id": "12", "question_type": "multi-choice",
        "question": question, "answer": "no", "choices": '["yes", "no"]',
    }  # fmt: skip
    end = ["?Choice list:['Image A: ", "1.jpg", "']. Your answer is:"]
    assert shown(second) == ["Answer. ", "1.jpg", " or ", "0.jpg", *end]
    assert second.text("assistant") == "4"
    assert json.loads(second.info["choices"]) == ["Image A: {image#2}"]  # as scorers compare them
    assert shown(third)[2] == " {image}?Choice list:['it's', '\u00e9']. Your answer is:"
    assert len(fourth.media) == 2
    assert source.notices == (
        "1 of 4 records name their pictures in another order, more than once or not at all; here "
        "each place gets the picture that it names",
    )
    root = make_source(f"demon:{path}?image_root=elsewhere", "test")
    assert str(root[0].media[0].data) == "elsewhere/0.jpg"


@pytest.mark.parametrize(
    ("context", "choices"),
    [
        ("Which? Choice List:['a', \"b's\"] Your answer is:", ["a", "b's"]),
        ("Which? Choice List:['a's', 'b']. Your answer is: ", ["a's", "b"]),
        ("[1] Which of ['x', 'y']", ["x", "y"]),
        ("Which of [2, 3]?", ["2", "3"]),
    ],
)
def test_choices_written_in_the_text(tmp_path, context, choices):
    (example,) = make_source(f"demon:{write(tmp_path, record(context, []))}", "test")
    assert json.loads(example.info["choices"]) == choices
    assert shown(example) == ["Answer. " + context]


@pytest.mark.parametrize("kind", ["open-ended", "", None])
def test_open_questions(tmp_path, kind):
    path = write(tmp_path, record("{image#1}: ", ["a.png"]), question_type=kind, num_sample=7)
    source = make_source(f"demon:{path}", "test")
    assert source[0].info["question_type"] == "open-ended" and "choices" not in source[0].info
    assert source.notices == ("it has 1 records, its metadata says 7",)


def test_bad_records_are_all_named(tmp_path):
    path = write(
        tmp_path,
        record("{image#3}", choices=["a"]),
        record("no list of choices"),
        record("x", choices=["a"], task_instruction_id=2),
        record("x", choices=["a"], sample_id=None),
        record("x", choices=["a"], response=None),
        record("x", choices="a"),
        record("fine", choices=["a"]),
    )
    with pytest.raises(ValueError) as caught:
        make_source(f"demon:{path}", "test")
    told = str(caught.value)
    assert "6 bad records" in told
    for part in (
        "record 0: field 'context' names pictures [3]; there are 2",
        "record 1: a multi-choice question without choices",
        "record 2: field 'task_instruction_id': there are 2 instructions",
        "record 3: field 'sample_id' is missing",
        "record 4: field 'response'",
        "record 5: field 'choice_list'",
    ):
        assert part in told
    for changes in (dict(question_type="essay"), dict(task_instruction="x"), dict(dataset=None)):
        with pytest.raises(ValueError, match=next(iter(changes))):
            make_source(f"demon:{write(tmp_path, record('x'), **changes)}", "test")
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected an object"):
        make_source(f"demon:{path}", "test")
