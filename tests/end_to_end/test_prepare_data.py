"""Data looked at before training: ``scripts/prepare_data.py``."""

import json

import pytest
from end_to_end.conftest import short_config
from end_to_end.short import ROOT
from end_to_end.test_scripts import call
from PIL import Image

from mmjax.train.check import check_data
from mmjax.train.loop import train


def own_config(folder, rows) -> dict:
    config = short_config()
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config["stages"], config["test"], config["features"] = ["instruct"], {}, "step"
    config["instruct"] |= {"eval": {}, "eval_at_end": False}
    config["instruct"]["data"] |= {"source": f"jsonl:{folder / 'own.jsonl'}", "options": {}}
    return config


@pytest.fixture
def rows(tmp_path):
    """Ten good rows, two of whose pictures are the same."""
    for number in range(9):
        Image.new("RGB", (64, 64), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return [
        {"image": f"{min(n, 8)}.png", "question": f"what colour is <{n}>?", "answer": "red"}
        for n in range(10)
    ]


def test_what_is_bad_is_found_and_listed(rows, tmp_path, capsys):
    (tmp_path / "1.png").write_bytes(b"\x89PNG not really")
    rows[2] |= {"image": "gone.png"}
    rows[3] |= {"question": "long " * 40}
    assert check_data(own_config(tmp_path, rows), tmp_path / "out")
    said = capsys.readouterr().out
    assert "10 records, 9 pictures; 3 cannot be used (training stops above 5)" in said
    assert "10 records in 1 sections, 3 cannot be used; good to train" in said
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").open()]
    assert [entry["row"] for entry in bad] == [1, 2, 3]
    assert {entry["section"] for entry in bad} == {"instruct"}
    assert [entry["id"] for entry in bad] == [f"own.jsonl:{n}" for n in (2, 3, 4)]
    for entry, reason in zip(bad, ("1.png", "gone.png", "the limit is 15"), strict=True):
        assert reason in entry["reason"]
    (prefix,) = [line.split() for line in said.splitlines() if line.split()[:1] == ["prefix"]]
    assert int(prefix[-2]) > 40 and prefix[-1] == "15"
    page = (tmp_path / "out" / "check.html").read_text()
    assert page.count("data:image/png;base64") == 7 and "&lt;media 0&gt;" in page
    assert '<span class="target" title="weight 1">red</span>' in page
    assert '<span class="slot">&lt;response 4&gt;</span>' in page


def test_too_much_is_bad(rows, tmp_path, capsys):
    for row in rows[:6]:
        row["image"] = "gone.png"
    assert not check_data(own_config(tmp_path, rows), tmp_path / "out")
    assert "training would stop: too many in instruct" in capsys.readouterr().out


def test_bad_lines_of_a_late_stage_stop_the_run_before_it_starts(rows, tmp_path):
    config = short_config()
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text(json.dumps(rows[0] | {"answer": 3}) + "\n{\n")
    for stage, name in (("align", "empty"), ("instruct", "bad")):
        config[stage]["data"] |= {"source": f"jsonl:{tmp_path / name}.jsonl", "options": {}}
    with pytest.raises(ValueError) as caught:
        train(config, tmp_path / "run")
    for text in (
        "align.data: ", "empty.jsonl holds no records", "instruct.data: ", "2 bad lines",
        "line 1: field 'answer' or 'caption': expected text, got 3", "line 2: not JSON",
    ):  # fmt: skip
        assert text in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_script(tmp_path):
    """Options within names, exit codes, and errors without a traceback."""
    config = f"--config={ROOT / 'configs' / 'lmeye.py'}"
    few = "easy-vqa?limit=50&task=caption"
    sources = [
        f"--config.align.data.source={few}",
        "--config.align.eval.data.source=easy-vqa?limit=50",
        "--config.instruct.data.source=jsonl:nowhere.jsonl",
    ]
    wrong = call("scripts/prepare_data.py", "check", config, *sources, f"--out={tmp_path}")
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr
    assert "align: easy-vqa/train: 50 records" in wrong.stdout
    assert "no such data file: nowhere.jsonl" in wrong.stderr
