"""LRV-Instruction's records, in every spelling, and the share of negatives."""

import collections
import json

import pytest
from PIL import Image

from mmjax.data.example import BadSample, Media, Text
from mmjax.data.images import load_image
from mmjax.data.sources import make_source
from mmjax.data.sources.lrv import TASKS

FIRST = {"image_id": "2356371", "question": "Is it red?", "answer": "No.", "task": "negative"}
OLDER = {"image_id": 7, "instruction": "What is it?", "answer_gt": "A dog."}
CHART = {"image_id": "chart_1.png", "question": "Did sales fall?", "answer": "No.",
         "task": "negative", "origin": "charts"}  # fmt: skip


def write(path, *rows, lines=False):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))
    return path


def mixed(path, positive: int, negative: int):
    rows = [FIRST | {"question": f"p{n}", "task": "OCR"} for n in range(positive)]
    return write(path, *rows, *(FIRST | {"question": f"n{n}"} for n in range(negative)))


@pytest.mark.parametrize("lines", [False, True])
def test_records(tmp_path, lines):
    path = write(tmp_path / "filter_cap.json", FIRST, OLDER, CHART, lines=lines)
    source = make_source(f"lrv:{path}", "train")
    first, older, chart = (source[i] for i in range(3))
    file = tmp_path / "image/2356371.jpg"
    assert first.turns[0].parts == (Media(str(file), file), Text("Is it red?"))
    assert first.text("assistant") == "No." and first.id == f"filter_cap.json:{int(lines)}"
    assert first.info == dict(
        image_id="2356371", question="Is it red?", answer="No.", task="negative",
        negative="negative", kind="negative",
    )  # fmt: skip
    assert older.media[0].data == tmp_path / "image/7.jpg" and older.info["answer"] == "A dog."
    assert (older.info["task"], older.info["negative"], older.info["kind"]) == ("", "", "positive")
    assert chart.media[0].data == tmp_path / "image/chart_1.png"
    assert chart.info["origin"] == "charts"
    assert source.kinds == ["negative", "positive", "negative"]


def test_options(tmp_path):
    rows = [FIRST, OLDER, FIRST | {"negative": "neg2"}, FIRST | {"task": "Negative 1"}]
    path = write(tmp_path / "x.json", *rows)
    source = make_source(f"lrv:{path}?images=/vg&extension=png&negatives_are=neg3", "train")
    assert str(source[0].media[0].data) == "/vg/2356371.png"
    assert source.kinds == ["neg3", "positive", "neg2", "neg1"]
    tasks = make_source(f"lrv:{path}?kind=task&negatives_are=neg3", "train")
    assert tasks.kinds == ["neg3", "", "neg2", "neg1"]
    for wrong in ("kind=tasks", "negatives_are=neg4", "negatives=2"):
        with pytest.raises(ValueError, match=wrong.split("=")[0]):
            make_source(f"lrv:{path}?{wrong}", "train")


def test_tasks_are_spelled_alike(tmp_path):
    names = [
        "Multi-choice VQA",
        "multichoice VQA.",
        " OCR ",
        "Image  Captioning",
        "Emotion",
        "Mood",
    ]
    path = write(tmp_path / "x.json", *(FIRST | {"task": name} for name in names))
    source = make_source(f"lrv:{path}?kind=task", "train")
    assert source.kinds == ["multi-choice vqa"] * 2 + ["ocr", "image captioning", "emotion", "mood"]
    (notice,) = source.notices
    assert notice.startswith("2 of 6 records name a task that is none of the 16: 'emotion' (1)")
    assert len(set(TASKS)) == 16


@pytest.mark.parametrize("share", [0.5, 1 / 3, 0.1, 0.9])
def test_the_share_of_negatives(tmp_path, share):
    """Exact in any stretch; every record is there; the smaller side is repeated evenly."""
    path = mixed(tmp_path / "x.json", 90, 20)
    source = make_source(f"lrv:{path}", "train", negatives=share)
    is_negative = [kind == "negative" for kind in source.kinds]
    for start in range(0, len(source) - 30, 7):
        assert abs(sum(is_negative[start : start + 30]) - 30 * share) <= 1
    seen = collections.Counter(source[i].info["question"] for i in range(len(source)))
    for side in "pn":
        counts = [seen[name] for name in seen if name[0] == side]
        assert len(counts) == {"p": 90, "n": 20}[side] and max(counts) - min(counts) <= 1
    (notice,) = source.notices
    repeated = {True: "20 negative", False: "90 positive"}[share > 20 / 110]
    assert f"{repeated} ones are repeated to" in notice
    again, other = (
        make_source(f"lrv:{path}", "train", negatives=share, seed=seed) for seed in (0, 1)
    )
    order = [source[i].info["question"] for i in range(len(source))]
    assert order == [again[i].info["question"] for i in range(len(again))]
    assert order != [other[i].info["question"] for i in range(len(other))]


def test_one_side_alone(tmp_path):
    path = mixed(tmp_path / "x.json", 9, 2)
    for share, count, notice in ((0, 9, "2 negative ones are left"), (1, 2, "9 positive ones are")):
        source = make_source(f"lrv:{path}", "train", negatives=share)
        assert len(source) == count == len({source[i].info["question"] for i in range(count)})
        assert notice in source.notices[0]
    path = mixed(tmp_path / "y.json", 9, 0)
    with pytest.raises(ValueError, match="negatives=0.5, but none of its 9 .* is negative .*=0,"):
        make_source(f"lrv:{path}?negatives=0.5", "train")
    path = mixed(tmp_path / "z.json", 0, 3)
    with pytest.raises(ValueError, match="negatives=0.5, but none of its 3 .* is positive .*=1,"):
        make_source(f"lrv:{path}?negatives=0.5", "train")


def test_all_bad_records_at_once(tmp_path):
    rows = {
        "field 'image_id' is missing or empty": {"question": "?", "image_id": ""},
        "field 'question' (or 'instruction') is missing": {"image_id": "1"},
        "fields 'question' and 'instruction' mean the same; give one": FIRST | {"instruction": "?"},
        "field 'answer': expected text, got 3": FIRST | {"answer": 3},
        "field 'negative': expected one of neg1, neg2, neg3, got 'neg4'": FIRST
        | {"negative": "neg4"},
        "expected an object, got list": [],
    }
    with pytest.raises(ValueError) as caught:
        make_source(f"lrv:{write(tmp_path / 'x.json', *rows.values())}", "train")
    head, *found = str(caught.value).split("\n  ")
    assert "6 bad records" in head
    assert found == [f"record {number}: {reason}" for number, reason in enumerate(rows)]
    with pytest.raises(ValueError, match="holds no records"):
        make_source(f"lrv:{write(tmp_path / 'y.json')}", "train")
    with pytest.raises(FileNotFoundError, match="no such data file"):
        make_source("lrv:gone.json", "train")


def test_missing_pictures_are_bad_samples(tmp_path):
    """They are replaced and counted as those of any source, see the pipeline's tests."""
    (tmp_path / "image").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "image/1.png")
    rows = [FIRST | {"image_id": name} for name in ("1.png", "gone")]
    source = make_source(f"lrv:{write(tmp_path / 'x.json', *rows)}", "train")
    assert load_image(source[0].media[0]).size == (8, 8)
    with pytest.raises(BadSample, match="image/gone.jpg: the file cannot be read"):
        load_image(source[1].media[0])
