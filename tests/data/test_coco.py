"""COCO's captions and VQAv2's questions."""

import json
from pathlib import Path

import pytest

from mmjax.data.example import Text
from mmjax.data.sources import make_source

IMAGES = [{"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "url": "x"} for n in (9, 25, 30)]
CAPTIONS = [
    {"id": 1, "image_id": 25, "caption": "A giraffe eats. "},
    {"id": 2, "image_id": 9, "caption": "A bowl of food."},
    {"id": 3, "image_id": 25, "caption": "Two giraffes."},
]
QUESTIONS = [
    {"question_id": 250, "image_id": 25, "question": "How many?"},
    {"question_id": 90, "image_id": 9, "question": "Is it food?"},
]
ANNOTATIONS = [
    {
        "question_id": 90,
        "answer_type": "yes/no",
        "answers": [{"answer": text} for text in ("no", "yes", "yes", "no", "yes")],
    },
    {"question_id": 250, "answers": [{"answer": "2"}, {"answer": "3"}]},
]


def write(folder: Path, name: str, **fields) -> str:
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(fields))
    return f"{folder / name}?images={folder / 'pictures'}"


def said(example) -> list[str]:
    return [part.text for turn in example.turns for part in turn.parts if isinstance(part, Text)]


def test_a_picture_comes_once_for_each_caption(tmp_path):
    name = write(tmp_path, "captions.json", images=IMAGES, annotations=CAPTIONS)
    source = make_source(f"coco-captions:{name}", "train")
    assert [source[i].id for i in range(len(source))] == ["1", "2", "3"]
    first = source[0]
    assert said(first) == ["A giraffe eats."] and first.info["image_id"] == "25"
    assert first.media[0].data == tmp_path / "pictures" / "COCO_train2014_000000000025.jpg"
    assert source.notices == ("1 of its 3 pictures have no caption",)
    each = make_source(f"coco-captions:{name}&each=picture", "train")
    assert [each[i].id for i in range(len(each))] == ["25", "9"]


def test_questions_find_their_annotation_by_its_id(tmp_path):
    """Upstream takes the first of ten answers, of the annotation at the same place."""
    name = write(tmp_path, "questions.json", questions=QUESTIONS, data_subtype="val2014")
    write(tmp_path, "annotations.json", annotations=ANNOTATIONS)
    told = f"vqav2:{name}&annotations={tmp_path / 'annotations.json'}"
    source = make_source(told, "train")
    assert source.kinds == ["question", "yes/no"]
    assert [said(source[i]) for i in (0, 1)] == [["How many?", "2"], ["Is it food?", "yes"]]
    assert source[1].id == "90" and source[1].info["answer"] == "yes"
    assert source[0].media[0].data.name == "COCO_val2014_000000000025.jpg"
    asked = make_source(f"vqav2:{name}&file_name={{id:012d}}.png", "test")
    assert said(asked[0]) == ["How many?"] and "answer" not in asked[0].info
    assert asked[0].media[0].data.name == "000000000025.png"


def test_what_is_wrong_is_told_at_once(tmp_path):
    name = write(tmp_path, "captions.json", images=IMAGES[:1], annotations=CAPTIONS)
    with pytest.raises(ValueError, match="2 bad annotations") as error:
        make_source(f"coco-captions:{name}", "train")
    assert "annotation 0: field 'image_id': 25 is none of the file's images" in str(error.value)
    with pytest.raises(ValueError, match="say where the pictures are"):
        make_source(f"coco-captions:{tmp_path / 'captions.json'}", "train")
    with pytest.raises(ValueError, match="no list 'questions'"):
        make_source(f"vqav2:{name}", "train")
    with pytest.raises(ValueError, match="each must be 'caption' or 'picture'"):
        make_source(f"coco-captions:{name}&each=word", "train")
    name = write(tmp_path, "questions.json", questions=QUESTIONS, data_subtype="val2014")
    write(tmp_path, "annotations.json", annotations=ANNOTATIONS[:1])
    with pytest.raises(ValueError, match="1 of 2 questions have no annotation, 0 .* e.g. 250"):
        make_source(f"vqav2:{name}&annotations={tmp_path / 'annotations.json'}", "train")
    with pytest.raises(ValueError, match="is no name of a picture"):
        make_source(f"vqav2:{name}&file_name={{number}}.jpg", "train")
    write(tmp_path, "annotations.json", annotations=[{"question_id": 90, "answers": []}])
    with pytest.raises(ValueError, match="annotation 0: field 'answers': expected a list"):
        make_source(f"vqav2:{name}&annotations={tmp_path / 'annotations.json'}", "train")
