"""Pictures and captions in tar files."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from mmjax.data.example import BadSample
from mmjax.data.sources import make_source
from mmjax.data.sources.tar_shards import _walk


def pack(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    pack(
        tmp_path / "00000.tar",
        {
            "./a.jpg": b"picture a" * 200,
            "./a.txt": b" a red bus\n",
            "./a.json": b'{"caption": "not this one"}',
            "b.png": b"picture b",
            "b.json": json.dumps({"caption": "a man", "url": "x"}).encode(),
            "c.jpg": b"no text",
            "LICENSE": b"...",
        },
    )
    pack(
        tmp_path / "00001.tar",
        {"d.txt": "ein Käse".encode(), "d.webp": b"picture d", "e.jpg": b"e", "e.json": b"[1]"},
    )
    return tmp_path


def test_records_are_read_where_they_lie(folder):
    source = make_source(f"tar:{folder}/*.tar", "train")
    assert len(source) == 4 and source.kinds == ["caption"] * 4
    shown = [(source[i].info["answer"], source[i].media[0].data()) for i in (2, 0, 1)]
    assert shown == [
        ("ein Käse", b"picture d"),
        ("a red bus", b"picture a" * 200),
        ("a man", b"picture b"),
    ]
    assert source[0].id == f"{folder}/00000.tar/./a"
    assert source.notices == ("1 records have no picture or no text and are left out",)
    with pytest.raises(BadSample, match="its text cannot be read: there is none"):
        source[3]
    with pytest.raises(IndexError, match="has 4 records, there is no 4"):
        source[4]


def test_places_are_kept_until_the_file_changes(folder, monkeypatch):
    make_source(f"tar:{folder}/*.tar", "train")
    walked = []
    monkeypatch.setattr(
        "mmjax.data.sources.tar_shards._walk", lambda file: walked.append(file.name) or _walk(file)
    )
    again = make_source(f"tar:{folder}/*.tar", "train")
    assert walked == [] and again[1].media[0].data() == b"picture b"
    pack(folder / "00001.tar", {"x.jpg": b"x", "x.txt": b"new"})
    os.utime(folder / "00001.tar", ns=(1, 1))
    (folder / "00000.tar.places").write_text('{"of"')  # written by halves
    again = make_source(f"tar:{folder}/*.tar", "train")
    assert walked == ["00000.tar", "00001.tar"] and again[2].info["answer"] == "new"
    for file in folder.glob("*.places*"):
        file.unlink()
    make_source(f"tar:{folder}/*.tar?keep=0", "train")
    assert not list(folder.glob("*.places*"))


def test_files_that_are_no_shards_are_told_at_once(folder):
    pack(folder / "00002.tar", {"a.jpg": b"a"}, "w:gz")
    (folder / "00003.tar").write_bytes((folder / "00000.tar").read_bytes()[:1100])
    pack(folder / "00004.tar", {"LICENSE": b"..."})
    pack(folder / "00005.tar", {"a.jpg": b"a", "x/a.txt": b"a", "a.JPG": b"b"})
    with pytest.raises(ValueError, match="4 of 6 tar files") as error:
        make_source(f"tar:{folder}/*.tar", "train")
    told = str(error.value)
    assert "00002.tar: " in told and "is it a whole tar file" in told
    assert "00003.tar: " in told
    assert "00004.tar: no picture with a text in it" in told
    assert "00005.tar: a.JPG is there twice" in told
    with pytest.raises(FileNotFoundError, match="no file fits"):
        make_source(f"tar:{folder}/none/*.tar", "train")
