"""Data sets prepared by tensorflow-datasets, which itself works without tensorflow."""

import subprocess
import sys

import pytest

from mmjax.data.images import load_image
from mmjax.data.sources import easy_vqa, easy_vqa_tfds, make_source

pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Forty questions of each split."""
    folder, questions = tmp_path_factory.mktemp("tfds"), easy_vqa.questions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(easy_vqa, "questions", lambda split: questions(split)[:40])
        assert easy_vqa_tfds.prepare(folder) == folder / "easy_vqa" / "1.0.0"
        easy_vqa_tfds.prepare(folder)  # it is there: nothing happens
    return folder


def test_the_same_records_as_from_the_package(prepared):
    source = make_source(f"tfds:easy_vqa?data_dir={prepared}&kind=kind", "dev")
    assert len(source) == 40 and source.name == "easy_vqa/1.0.0/dev"
    assert source.kinds == [example.info["kind"] for example in source]

    def said(source):
        examples = [source[i] for i in range(len(source))]
        return sorted(
            (e.text("user"), e.text("assistant"), e.info["kind"], load_image(e.media[0]).tobytes())
            for e in examples
        )

    assert said(source) == said(make_source("easy-vqa?limit=40", "dev"))
    assert len({example.media[0].key for example in source}) == 40
    assert len(make_source(f"tfds:easy_vqa:1.0.0?data_dir={prepared}", "test[:25%]")) == 10


def test_features_by_name(prepared):
    swapped = f"tfds:easy_vqa?data_dir={prepared}&question=answer&answer=kind"
    example = make_source(swapped, "train")[0]
    assert example.info["answer"] in easy_vqa.KINDS  # a class label by its name
    with pytest.raises(ValueError, match=r"no feature for answer=reply; it has .*question"):
        make_source(f"tfds:easy_vqa?data_dir={prepared}&answer=reply", "train")


def test_what_is_not_there(prepared, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"(?s)there: easy_vqa.*prepare_data.py tfds"):
        make_source(f"tfds:vqa_v2?data_dir={prepared}", "train")
    with pytest.raises(FileNotFoundError, match="there: nothing"):
        make_source(f"tfds:easy_vqa:2.0.0?data_dir={tmp_path}", "train")
    with pytest.raises(ValueError, match="no split 'validation', but train, dev, test"):
        make_source(f"tfds:easy_vqa?data_dir={prepared}", "validation")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[tfds\]'"):
        make_source("tfds:easy_vqa", "train")


def test_tensorflow_is_never_imported(prepared):
    code = (
        "import sys\n"
        "from mmjax.data.sources import easy_vqa_tfds, make_source\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"source = make_source('tfds:easy_vqa?data_dir={prepared}', 'train')\n"
        "assert source[0].media and 'tensorflow_datasets' in sys.modules\n"
        f"easy_vqa_tfds.prepare('{prepared}')\n"
        "assert 'tensorflow' not in sys.modules, 'tensorflow was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
