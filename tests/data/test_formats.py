"""Formats of others: messages with pictures, LLaVA's conversations, LMEye's own."""

import json
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from mmjax.data.example import BadSample, Media, Text
from mmjax.data.images import load_image
from mmjax.data.sources import make_source
from mmjax.data.sources.lmeye import feature_key
from mmjax.data.templates import LMEyeQuestion

TEMPLATE = LMEyeQuestion(100, 101, num_responses=2)


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return path


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def say(role, content):
    return {"role": role, "content": content}


def parts(turn):
    return [part.text if isinstance(part, Text) else part.data.name for part in turn.parts]


def test_messages_with_pictures(tmp_path):
    dialogue = [say("user", "Look: <image>\nwhat is it?"), say("assistant", "A <image> of a cat.")]
    pieces = [{"type": "image"}, {"type": "text", "text": "what does <image> mean?"}]
    path = lines(
        tmp_path / "chat.jsonl",
        {"id": 7, "images": ["a.png"], "messages": dialogue, "kind": "cats"},
        {"image": "b.png", "messages": [say("user", pieces), say("assistant", "a place")]},
        {"messages": [say("user", "no picture"), say("assistant", "none")]},
        {"images": ["c.png"], "messages": [say("user", "<image>what?")]},
    )
    source = make_source(f"jsonl:{path}", "train")
    first, second, third, fourth = (source[i] for i in range(4))
    assert first.id == "7" and source.kinds == ["cats", "", "", ""]
    assert parts(first.turns[0]) == ["Look: ", "a.png", "what is it?"]
    assert first.text("assistant") == "A <image> of a cat."
    assert first.info == {
        "kind": "cats", "question": "Look: what is it?", "answer": "A <image> of a cat.",
    }  # fmt: skip
    assert parts(second.turns[0]) == ["b.png", "what does <image> mean?"]
    assert third.media == () and len(fourth.turns) == 1


def test_exchanges_of_a_dialogue(tmp_path, tokenizer):
    messages = [
        say("system", "Be short."),
        say("user", "<image>one"),
        say("assistant", "two"),
        say("user", "three"),
        say("assistant", "four"),
    ]
    path = lines(tmp_path / "chat.jsonl", {"id": "d", "images": ["a.png"], "messages": messages})
    each = make_source(f"jsonl:{path}?system=user", "train")
    assert [example.id for example in each] == ["d", "d#2"] and each.notices == ()
    assert [parts(turn) for turn in each[0].turns] == [["Be short.", "\n", "a.png", "one"], ["two"]]
    assert [parts(turn) for turn in each[1].turns] == [["a.png", "three"], ["four"]]
    first = make_source(f"jsonl:{path}?turns=first&system=user", "train")
    assert len(first) == 1 and "1 later exchanges are left out" in first.notices[0]
    whole = make_source(f"jsonl:{path}?turns=all", "train")
    assert [turn.role for turn in whole[0].turns] == [m["role"] for m in messages]
    for source in (whole, make_source(f"jsonl:{path}", "train")):
        with pytest.raises(BadSample, match="d: it has turns of system, user.*system .user."):
            TEMPLATE.encode(source[0], tokenizer)
    encoded = TEMPLATE.encode(each[1], tokenizer)
    assert encoded.media[0].key == str(tmp_path / "a.png")
    with pytest.raises(ValueError, match="turns must be 'each', 'first' or 'all', got 'last'"):
        make_source(f"jsonl:{path}?turns=last", "train")


def test_wrong_messages_are_named_all_at_once(tmp_path):
    user, assistant = say("user", "<image>what?"), say("assistant", "this")
    path = lines(
        tmp_path / "bad.jsonl",
        {"images": ["a.png"], "messages": [user, assistant]},
        {"images": ["a.png", "b.png"], "messages": [user, assistant]},
        {"messages": [user, assistant]},
        {"images": ["a.png"], "messages": [assistant, user]},
        {"images": ["a.png"], "messages": [user, {"role": "tool", "content": "x"}]},
        {"images": ["a.png"], "messages": [say("user", [{"type": "video"}])]},
        {"images": ["a.png"], "messages": "hello"},
        {"images": ["a.png"], "messages": []},
        {"images": ["a.png"], "messages": [user], "question": "twice"},
        {"images": ["a.png"], "messages": [say("user", 3)]},
    )
    with pytest.raises(ValueError) as caught:
        make_source(f"jsonl:{path}", "train")
    expected = [
        "9 bad lines",
        "line 2: 1 <image> placeholders in the user's text, but 2 pictures",
        "line 3: 1 <image> placeholders in the user's text, but 0 pictures",
        "line 4: expected turns of user and assistant by turns",
        "line 5: message 1: expected an object whose 'role' is system or user or assistant, got",
        "line 6: message 0, 'content', part 0: expected a part of type 'text' or image",
        "line 7: field 'messages': expected a list, got 'hello'",
        "line 8: expected turns of user and assistant",
        "line 9: fields 'messages' and 'question' say the same",
        "line 10: message 0, 'content': expected text or a list of parts, got 3",
    ]
    found = str(caught.value).split("\n  ")
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert start in line


def test_llava(tmp_path, tokenizer):
    talk = [
        {"from": "human", "value": "What is this?\n<image>"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "Here."},
    ]
    records = [
        {"id": "1", "image": "coco/1.jpg", "conversations": talk},
        {"id": "2", "conversations": talk[2:]},
    ]
    path = write(tmp_path / "llava.json", records)
    source = make_source(f"llava:{path}?image_root=/data", "train")
    assert [example.id for example in source] == ["1", "1#2", "2"]
    assert parts(source[0].turns[0]) == ["What is this?", "1.jpg"]
    assert source[0].media[0].data.as_posix() == "/data/coco/1.jpg"
    assert parts(source[1].turns[0]) == ["1.jpg", "Where?"] and source[2].media == ()
    assert make_source(f"llava:{path}", "train")[0].media[0].data == tmp_path / "coco/1.jpg"
    TEMPLATE.encode(source[1], tokenizer)
    with pytest.raises(BadSample, match="it has 0 pictures"):
        TEMPLATE.encode(source[2], tokenizer)
    first = make_source(f"llava:{path}?turns=first", "train")
    assert len(first) == 2 and "1 later exchanges" in first.notices[0]

    records += [
        {"id": "3", "image": "x.jpg", "conversations": talk[2:]},
        {"id": "4", "conversations": [{"from": "robot", "value": "hm"}]},
        {"id": "5"},
        "text",
    ]
    with pytest.raises(ValueError, match=r"4 bad records") as caught:
        make_source(f"llava:{write(path, records)}", "train")
    for text in (
        "record 2: 0 <image> placeholders in the user's text, but 1 pictures",
        "record 3: message 0: expected an object whose 'from' is human or gpt or system, got",
        "record 4: field 'conversations' is missing",
        "record 5: expected an object, got str",
    ):
        assert text in str(caught.value)
    with pytest.raises(ValueError, match="expected a list of records, got dict"):
        make_source(f"llava:{write(path, {})}", "train")
    with pytest.raises(ValueError, match="holds no records"):
        make_source(f"llava:{write(path, [])}", "train")
    with pytest.raises(FileNotFoundError, match="no such data file"):
        make_source(f"llava:{tmp_path}/none.json", "train")


@pytest.fixture
def chunks(tmp_path):
    """Three chunks: twenty pictures, a damaged archive, a missing one."""
    (tmp_path / "image").mkdir()
    with zipfile.ZipFile(tmp_path / "image" / "7.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            with archive.open(f"train/{number}.png", "w") as file:
                Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "PNG")
        archive.writestr("train/huge.png", b"\0" * (70 << 20))
    (tmp_path / "image" / "8.zip").write_bytes((tmp_path / "image" / "7.zip").read_bytes()[:500])
    records = [
        {"question": f"q{n}", "answer": "a", "image_path": f"train/{n}.png", "chunk_belong": 7}
        for n in range(20)
    ]
    for change in (
        {"chunk_belong": 8},
        {"chunk_belong": "9.zip"},
        {"image_path": "none.png"},
        {"image_path": "train/huge.png"},
    ):
        records.append(records[0] | change)
    write(tmp_path / "json" / "data.json", records)
    return tmp_path


def test_lmeye_chunks(chunks):
    source = make_source(f"lmeye:{chunks}", "train")
    assert len(source) == 24
    assert source[3].text("user") == "q3" and source[3].info == {"question": "q3", "answer": "a"}
    assert source[3].media[0].key == f"{chunks}/image/7.zip/train/3.png"
    with ThreadPoolExecutor(8) as threads:
        loaded = threads.map(
            lambda n: load_image(source[n % 20].media[0]).getpixel((0, 0)), range(400)
        )
        assert list(loaded) == [(n % 20, 0, 0) for n in range(400)]
    for index, reason in (
        (20, "8.zip: 'train/0.png' cannot be read .BadZipFile"),
        (21, "9.zip: 'train/0.png' cannot be read .FileNotFoundError"),
        (22, "7.zip: the archive has no 'none.png'"),
        (23, "7.zip: train/huge.png has 73400320 bytes unpacked"),
    ):
        with pytest.raises(BadSample, match=reason):
            load_image(source[index].media[0])


def test_lmeye_chunks_with_wrong_fields(tmp_path):
    good = {"question": "q", "answer": "a", "image_path": "1.png", "chunk_belong": 1}
    wrong = [{"chunk_belong": "../1"}, {"chunk_belong": None}, {"answer": None}, {"question": 1}]
    write(tmp_path / "json" / "data.json", [good, *(good | change for change in wrong)])
    with pytest.raises(ValueError, match="4 bad records") as caught:
        make_source(f"lmeye:{tmp_path}", "train")
    for text in ("record 1: field 'chunk_belong': '../1'", "record 3: field 'answer' is missing"):
        assert text in str(caught.value)


def test_lmeye_by_id(tmp_path, tokenizer):
    first = "Image: <img>\n what is this? <img-d>"
    second = "Image: <img>\n what is this? <img-d> <img-d>\nAnswer: a cat\nAnswer: or so"
    path = write(
        tmp_path / "v1.json",
        [
            {"image_id": "coco-train-000123", "caption": "a cat"},
            {"image_id": 12, "input_ids": "a dog"},
            {"image_id": "semart-18759-guard301", "pre_input_ids": first, "input_ids": second},
        ],
    )
    source = make_source(f"lmeye-v1:{path}", "train")
    assert [example.media for example in source] == [
        (Media(key, None),) for key in ("000123", "12", "18759-guard301")
    ]
    assert [example.text("assistant") for example in source] == [
        "a cat", "a dog", "a cat\nAnswer: or so",
    ]  # fmt: skip
    assert source[2].text("user") == "what is this?"
    TEMPLATE.encode(source[2], tokenizer)
    with pytest.raises(BadSample, match="000123: only the picture's id is known.*stored features"):
        load_image(source[0].media[0])
    wrong = [
        {"caption": "no id"},
        {"image_id": "1"},
        {"image_id": "1", "pre_input_ids": "<img> <img> x <img-d>", "input_ids": second},
        {"image_id": "1", "pre_input_ids": first, "input_ids": "Image: <img> what?"},
    ]
    with pytest.raises(ValueError, match="4 bad records") as caught:
        make_source(f"lmeye-v1:{write(path, wrong)}", "train")
    assert "expected one <img> and then <img-d>, got 2 and 1" in str(caught.value)


@pytest.mark.parametrize(
    ("image_id", "key"),
    [("coco-17", "17"), ("a-flickr-x-3", "3"), ("semart-1-a-b", "1-a-b"), ("cc3m-7", "cc3m-7")],
)
def test_keys_of_features(image_id, key):
    assert feature_key(image_id) == key


def test_unknown_sources_and_options(tmp_path):
    with pytest.raises(ValueError, match="did you mean llava:PATH"):
        make_source("lava:x.json", "train")
    with pytest.raises(ValueError, match="has no option colour; there are image_root, turns"):
        make_source("jsonl:x.jsonl?colour=1", "train")
    assert len(make_source("easy-vqa?limit=3", "dev")) == 3
    odd = lines(tmp_path / "what?.jsonl", {"question": "a question mark in a file's name"})
    assert len(make_source(f"jsonl:{odd}", "train")) == 1
