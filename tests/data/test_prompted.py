import collections
import json

import pytest

from mmjax.data.example import BadSample, Example, Media, Text, Turn
from mmjax.data.lynx import FINETUNE, PRETRAIN, PROMPTS
from mmjax.data.sources import make_source
from mmjax.data.sources.prompted import asked_with


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_papers_mixture():
    """Its shares add up to 100 but for rounding, and say which prompts a source has."""
    for stage, count, whole in ((PRETRAIN, 30, 100), (FINETUNE, 32, 99.999)):
        assert len(stage) == count
        assert sum(one.share for one in stage.values()) == pytest.approx(whole, abs=1e-6)
        assert {one.prompts for one in stage.values()} <= {*PROMPTS, None}
    assert PRETRAIN["blip_capfilt"].share == 30.525 and PRETRAIN["pascal_sentences"].share == 0.003
    assert FINETUNE["flan_v2"].shows == "text" and FINETUNE["sthv2_caption"].shows == "video"
    by_kind = collections.Counter()
    for one in FINETUNE.values():
        by_kind[one.shows] += one.share
    assert by_kind["video"] == pytest.approx(15.0) and by_kind["text"] == pytest.approx(30.0)


def test_prompts_are_at_least_three_for_each_task():
    asking = {"vqa", "video_vqa", "text_vqa", "yes_no", "choice", "entailment"}
    for task, prompts in PROMPTS.items():
        assert len({*prompts}) == len(prompts) >= 4
        assert {prompt.count("{question}") for prompt in prompts} == {int(task in asking)}
    used = {one.prompts for stage in (PRETRAIN, FINETUNE) for one in stage.values()}
    assert used - {None} == {*PROMPTS}


def test_questions_are_asked_in_many_ways(tmp_path):
    rows = [{"image": "a.png", "question": f"what is {n}", "answer": "x"} for n in range(300)]
    path = write(tmp_path / "q.jsonl", *rows)
    plain = make_source(f"jsonl:{path}", "train")
    source = make_source(f"jsonl:{path}?prompts=vqa", "train")
    asked = [source[n].text("user") for n in range(300)]
    assert asked[:2] != [source[n].text("user") for n in range(2, 4)]
    assert all(f"what is {n}?" in text for n, text in enumerate(asked))
    kinds = collections.Counter(
        text.replace(f"what is {n}?", "{question}") for n, text in enumerate(asked)
    )
    assert {*kinds} == {*PROMPTS["vqa"]} and min(kinds.values()) > 25
    assert source[7].info == plain[7].info and source[7].media == plain[7].media
    assert source[7].turns[1] == plain[7].turns[1] and source.kinds == plain.kinds
    again = make_source(f"jsonl:{path}?prompts=vqa", "train")
    assert [again[n].text("user") for n in reversed(range(300))] == asked[::-1]
    other = make_source(f"jsonl:{path}?prompts=vqa&prompt_seed=1", "train")
    assert [other[n].text("user") for n in range(300)] != asked
    one = make_source(f"jsonl:{path}?prompts=vqa&prompt_choice=one", "train")
    assert {one[n].text("user").replace(f"what is {n}?", "") for n in range(300)} == {
        " Give a short answer."
    }


def test_pictures_without_a_question():
    source = make_source("easy-vqa?task=caption&limit=60&prompts=caption", "dev")
    assert {source[n].text("user") for n in range(60)} == {*PROMPTS["caption"]}
    assert isinstance(source[0].turns[0].parts[0], Media)


def example(*parts) -> Example:
    return Example("it", (Turn("user", parts), Turn("assistant", (Text("x"),))))


PICTURE = Media("p", None)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((PICTURE, Text("red")), (PICTURE, Text("So: red? Say."))),
        ((Text("is it red?"), PICTURE), (Text("So: is it red? Say."), PICTURE)),
        ((Text("is "), PICTURE, Text(" red.")), (Text("So: is "), PICTURE, Text(" red. Say."))),
        ((PICTURE, Text(" ")), None),
    ],
)
def test_a_prompt_goes_around_the_text(parts, expected):
    if expected is None:
        with pytest.raises(BadSample, match="it: it asks nothing: the prompt 'So"):
            asked_with("So: {question} Say.", example(*parts))
    else:
        assert asked_with("So: {question} Say.", example(*parts)).turns[0].parts == expected


def test_records_that_prompts_are_not_for():
    with pytest.raises(BadSample, match="it has a text of its own: the prompt 'Describe'"):
        asked_with("Describe", example(PICTURE, Text("why?")))
    turns = example(PICTURE, Text("why?")).turns
    with pytest.raises(BadSample, match="2 questions, prompts are for one"):
        asked_with("{question}", Example("it", turns * 2))
    for options, message in (
        ("prompts=quiz", "prompts must be one of caption, .*, got 'quiz'"),
        ("prompts=vqa&prompt_choice=some", "prompt_choice must be 'one' or 'many', got 'some'"),
        ("prompt_choice=one", "easy-vqa has prompt_choice, but no option prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            make_source(f"easy-vqa?limit=3&{options}", "dev")


def test_parts_of_a_mixture_have_prompts():
    parts = dict(
        questions=dict(source="easy-vqa", options=dict(limit=4, prompts="yes_no")),
        clips=dict(source="easy-vqa-clips?num_records=4&prompts=video_vqa"),
    )
    source = make_source(parts, "dev")
    assert source[4].text("user") != make_source("easy-vqa?limit=4", "dev")[0].text("user")
    assert source[0].media[0].is_video
