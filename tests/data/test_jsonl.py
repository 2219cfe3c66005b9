import json
from pathlib import Path

import pytest

from mmjax.data.example import Media, Text, Turn
from mmjax.data.sources import make_source
from mmjax.data.sources.jsonl import Jsonl


def write(path, *records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_records(tmp_path):
    path = write(
        tmp_path / "dev.jsonl",
        {
            "id": "first",
            "image": "photos/1.jpg",
            "question": "what <img> is\nthis </s>?",
            "answer": "a cat",
        },
        "",
        {
            "images": ["a.png", "/data/b.png"],
            "text": "compare",
            "kind": "two",
            "level": 3,
            "note": None,
        },
        {"image": "c.png", "caption": "ein Käfer"},
        {"question": "no picture"},
    )
    source = make_source(f"jsonl:{tmp_path}/{{split}}.jsonl", "dev")
    assert len(source) == 4 and source.name == str(path)
    first, second, third, fourth = (source[i] for i in range(4))
    assert first.id == "first"
    assert first.text("user") == "what <img> is\nthis </s>?"  # one part, as it is
    assert [type(part) for part in first.turns[0].parts] == [Media, Text]
    assert first.media[0].data == tmp_path / "photos/1.jpg"
    assert first.text("assistant") == "a cat"
    assert first.info == {"question": "what <img> is\nthis </s>?", "answer": "a cat"}
    assert second.id == "dev.jsonl:3"  # the file's line, blank ones counted
    assert [str(media.data) for media in second.media] == [str(tmp_path / "a.png"), "/data/b.png"]
    assert len(second.turns) == 1 and second.info == {
        "question": "compare",
        "kind": "two",
        "level": "3",
    }
    assert third.text("assistant") == "ein Käfer" and third.text("user") == ""
    assert fourth.media == ()
    assert source.kinds == ["", "two", "", ""]
    assert Jsonl(path, image_root="/elsewhere")[0].media[0].key == "/elsewhere/photos/1.jpg"


def test_parts_keep_their_order(tmp_path):
    parts = [
        {"type": "text", "text": "is <image> "},
        {"type": "image", "image": "a.png"},
        {"type": "image", "image": "/b.png"},
        {"type": "text", "text": "?"},
    ]
    (example,) = Jsonl(write(tmp_path / "x.jsonl", {"parts": parts, "answer": "no", "kind": "k"}))
    asked, answered = example.turns
    first, second = (Media(path, Path(path)) for path in (str(tmp_path / "a.png"), "/b.png"))
    assert asked == Turn("user", (Text("is <image> "), first, second, Text("?")))
    assert answered == Turn("assistant", (Text("no"),))
    assert example.info == {"question": "is <image> ?", "answer": "no", "kind": "k"}


def test_videos(tmp_path):
    """A file, or a list of pictures; after the record's pictures."""
    frames = ["f/1.png", "f/2.png"]
    source = Jsonl(
        write(
            tmp_path / "x.jsonl",
            {"video": "a.mp4", "question": "what?", "answer": "x"},
            {"video": frames, "image": "b.png", "question": "what?"},
            {"parts": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "why?"}]},
        )
    )
    film = Media(str(tmp_path / "a.mp4"), tmp_path / "a.mp4", is_video=True)
    pictures = tuple(Media(str(tmp_path / frame), tmp_path / frame) for frame in frames)
    assert source[0].turns[0].parts == (film, Text("what?"))
    still, listed = source[1].media
    assert not still.is_video and listed.is_video and listed.data == pictures
    assert listed.key == " ".join(picture.key for picture in pictures)
    assert source[2].turns[0].parts == (film, Text("why?"))


def test_bad_parts(tmp_path):
    text = {"type": "text", "text": "x"}
    rows = {
        "field 'parts': expected a list of parts, got []": {"parts": []},
        "field 'parts': expected a list of parts, got 'x'": {"parts": "x"},
        "field 'parts', part 1: expected the type 'text', 'image' or 'video', got "
        "{'type': 'sound'}": {"parts": [text, {"type": "sound"}]},
        "field 'parts', part 0: expected the type 'text', 'image' or 'video', got 3": {
            "parts": [3]
        },
        "field 'parts', part 0, 'video': a video without a file": {"parts": [{"type": "video"}]},
        "field 'parts', part 0, 'video': expected a path or a list of paths, got 4": {
            "parts": [{"type": "video", "video": 4}]
        },
        "field 'video' goes with 'question' or 'parts', not with 'messages'": {
            "video": "a.mp4",
            "messages": [],
        },
        "field 'parts', part 0, 'text': expected text, got None": {"parts": [{"type": "text"}]},
        "field 'parts', part 0, 'image': expected text, got 4": {
            "parts": [{"type": "image", "image": 4}]
        },
        "field 'parts', part 0, 'image': the path is empty": {
            "parts": [{"type": "image", "image": ""}]
        },
        "fields 'parts' and 'question' say the same; give one": {
            "parts": [text],
            "question": "x",
        },
        "fields 'messages' and 'parts' say the same; give one": {"parts": [text], "messages": []},
    }
    with pytest.raises(ValueError) as caught:
        Jsonl(write(tmp_path / "x.jsonl", *rows.values()))
    _, *lines = str(caught.value).split("\n  ")
    assert lines == [f"line {number}: {reason}" for number, reason in enumerate(rows, start=1)]


def test_all_bad_lines_at_once(tmp_path):
    path = write(
        tmp_path / "bad.jsonl",
        '{"image": "a.png", "question": "fine"}',
        '{"image": "a.png", "question": ',
        "[1, 2]",
        '{"image": 3, "question": "x"}',
        '{"image": "a.png", "question": 5}',
        '{"image": "a.png", "question": "x", "text": "y"}',
        '{"image": "a.png", "answer": "x", "caption": "y"}',
        '{"answer": "x"}',
        '{"image": "a.png", "extra": {"deep": 1}}',
        '{"images": ["a.png", null]}',
    )
    with pytest.raises(ValueError) as caught:
        Jsonl(path)
    lines = str(caught.value).split("\n  ")
    assert lines[0] == f"{path}: 9 bad lines"
    expected = [
        "line 2: not JSON (Expecting value at column",
        "line 3: expected an object, got list",
        "line 4: field 'image' or 'images': expected a path or a list of paths, got 3",
        "line 5: field 'question' or 'text': expected text, got 5",
        "line 6: fields 'question' and 'text' mean the same",
        "line 7: fields 'answer' and 'caption' mean the same",
        "line 8: it has neither a picture (field 'image') nor a video ('video') nor a text",
        "line 9: field 'extra': expected text, a number or a boolean",
        "line 10: field 'image' or 'images'",
    ]
    assert len(lines) == 10
    for line, start in zip(lines[1:], expected, strict=True):
        assert line.startswith(start)


def test_twenty_bad_lines_are_shown(tmp_path):
    with pytest.raises(
        ValueError, match=r"25 bad lines(?s:.*)line 20: (?s:.*)and 5 more$"
    ) as caught:
        Jsonl(write(tmp_path / "bad.jsonl", *["{"] * 25))
    assert "line 21" not in str(caught.value)


def test_other_encodings_and_empty_files(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"question": "K\xe4fer"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match="line 1: not UTF-8"):
        Jsonl(path)
    path.write_bytes(b'\xef\xbb\xbf{"question": "with a byte order mark"}\r\n')
    assert Jsonl(path)[0].text("user") == "with a byte order mark"
    with pytest.raises(ValueError, match="holds no records"):
        Jsonl(write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(FileNotFoundError, match="no such data file"):
        Jsonl(tmp_path / "missing.jsonl")
