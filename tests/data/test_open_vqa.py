import base64
import collections
import io
import json

import numpy as np
import pytest
from PIL import Image

from mmjax.data.example import BadSample, Media, Text
from mmjax.data.images import load_image
from mmjax.data.sources import make_source
from mmjax.data.sources.open_vqa import OpenVQA
from mmjax.data.video import prepare_video

# Two lines of the benchmark (Apache-2.0, see its README), and one as users write them.
VIDEO = {
    "question": "Does the toy train roll down a slanted surface?", "answer": ["yes"], "index": 1,
    "dataset": "Open_VQA_videos", "video": "images/sthsthv2cap/val/97908.mp4",
    "origin_dataset": "sthsthv2cap", "class": "Action(Y/N)",
}  # fmt: skip
IMAGE = {
    "dataset": "Open_VQA_images", "question": "What is in the image?",
    "answer": ["platform or tunnel"], "index": 1,
    "image": "images/places365/val_256/Places365_val_00000698.jpg", "origin_dataset": "places365",
    "class": "Place",
}  # fmt: skip
OWN = {"question": "why?", "index": "a7", "image": "a.png"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def grey(value: int, kind="PNG") -> str:
    data = io.BytesIO()
    Image.new("RGB", (9, 9), (value,) * 3).save(data, kind)
    return base64.b64encode(data.getvalue()).decode()


def test_records(tmp_path):
    source = make_source(f"open-vqa:{write(tmp_path / 'x.jsonl', VIDEO, OWN)}", "test")
    assert source.kinds == ["Action(Y/N)", "image"] and len(source) == 2
    film = tmp_path / VIDEO["video"]
    first, own = source[0], source[1]
    assert first.id == "Open_VQA_videos/1" and own.id == "open-vqa/a7"
    assert first.turns[0].parts == (
        Media(str(film), film, is_video=True), Text(VIDEO["question"]),
    )  # fmt: skip
    assert first.text("assistant") == "yes"
    assert first.info == {
        "index": "1", "kind": "Action(Y/N)", "question": VIDEO["question"], "answer": "yes",
        "dataset": "Open_VQA_videos", "origin_dataset": "sthsthv2cap",
    }  # fmt: skip
    assert len(own.turns) == 1 and own.media == (
        Media(str(tmp_path / "a.png"), tmp_path / "a.png"),
    )
    path = write(tmp_path / "y.jsonl", IMAGE)
    (example,) = make_source(f"open-vqa:{path}?image_root=/data", "test")
    assert str(example.media[0].data) == f"/data/{IMAGE['image']}" and not example.media[0].is_video
    assert example.info["answer"] == "platform or tunnel" and example.info["kind"] == "Place"


def test_every_form_of_picture_and_video(tmp_path):
    frames = [grey(value) for value in (10, 20, 30)]
    (tmp_path / "frames.json").write_text(json.dumps(frames))
    (tmp_path / "one.json").write_text(json.dumps(frames[1]))
    (tmp_path / "a.png").write_bytes(base64.b64decode(frames[2]))
    rows = [
        {"image": "a.png"}, {"image": frames[0]}, {"image": "one.json"},
        {"image": f"data:image/png;base64,{frames[0]}"}, {"video": frames},
        {"video": "frames.json"}, {"video": "one.json"}, {"video": frames[2]}, {"video": "a.png"},
    ]  # fmt: skip
    rows = [row | {"index": n, "question": "?"} for n, row in enumerate(rows)]
    source = OpenVQA(write(tmp_path / "x.jsonl", *rows))
    pictures = [load_image(source[n].media[0]).getpixel((4, 4))[0] for n in range(4)]
    assert pictures == [30, 10, 20, 10]
    videos = [
        prepare_video(source[n].media[0], 4, count=3)[:, 0, 0, 0].tolist() for n in range(4, 9)
    ]
    assert videos == [[10, 20, 30], [10, 20, 30], [20] * 3, [30] * 3, [30] * 3]
    for kind in ("JPEG", "GIF", "WEBP", "BMP"):
        (example,) = OpenVQA(write(tmp_path / "y.jsonl", OWN | {"image": grey(90, kind)}))
        assert abs(np.asarray(load_image(example.media[0])).mean() - 90) < 3


def test_pictures_that_cannot_be_read(tmp_path):
    (tmp_path / "frames.json").write_text(json.dumps([grey(1), grey(2)]))
    rows = [{"image": "frames.json"}, {"image": "gone.json"}, {"image": grey(3)[:64]}]
    source = OpenVQA(
        write(
            tmp_path / "x.jsonl",
            *(row | {"index": n, "question": "?"} for n, row in enumerate(rows)),
        )
    )
    for n, reason in enumerate(
        (
            "frames.json: it holds 2 frames: give it in the field 'video'",
            "gone.json: the file",
            "damaged",
        )
    ):
        with pytest.raises(BadSample, match=reason):
            load_image(source[n].media[0])


def test_paths_that_look_like_base64_are_paths(tmp_path):
    path = "/9j/" + "a" * 80 + ".jpg"
    (example,) = OpenVQA(write(tmp_path / "x.jsonl", OWN | {"image": path}))
    assert str(example.media[0].data) == path


def test_all_bad_records_at_once(tmp_path):
    rows = {
        "field 'index' is missing": {"question": "?", "image": "a"},
        "expected a field 'image' or a field 'video', got neither": {"index": 2, "question": "?"},
        "expected a field 'image' or a field 'video', got image and video": OWN | {"video": "b"},
        "field 'question' is missing": {"index": 4, "image": "a"},
        "field 'answer': one answer: expected text, got ['a', 'b']": OWN | {"answer": ["a", "b"]},
        "field 'image': the path is empty": OWN | {"image": ""},
        "field 'image': expected text, got ['a.png']": OWN | {"image": ["a.png"]},
        "field 'image': http://x.org/a.png is no file; nothing is fetched, download it first": OWN
        | {"image": "http://x.org/a.png"},
        "field 'video': expected pictures in base64, got 'a.png'": {
            "index": 9, "question": "?", "video": ["a.png"],
        },
        "field 'image': s3://b/a.png is no file; nothing is fetched, download it first": OWN
        | {"image": "s3://b/a.png"},
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:
        OpenVQA(write(tmp_path / "x.jsonl", *rows.values()))
    _, *lines = str(caught.value).split("\n  ")
    assert lines == [f"line {number}: {reason}" for number, reason in enumerate(rows, start=1)]
    with pytest.raises(ValueError, match="line 2: field 'index': a7 is that of line 1, too"):
        OpenVQA(write(tmp_path / "x.jsonl", OWN, OWN))
    with pytest.raises(FileNotFoundError, match="no such data file"):
        make_source("open-vqa:gone.jsonl", "test")


def test_kinds_are_the_classes(tmp_path):
    rows = [
        VIDEO | {"index": n, "class": kind} for n, kind in enumerate(("Others", "Place", "Others"))
    ]
    source = OpenVQA(write(tmp_path / "x.jsonl", *rows))
    assert collections.Counter(source.kinds) == {"Others": 2, "Place": 1}
