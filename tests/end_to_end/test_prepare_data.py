"""Data looked at before training: ``scripts/prepare_data.py``."""

import json
import os

import pytest
from end_to_end.conftest import short_config
from end_to_end.short import ROOT
from end_to_end.test_scripts import call
from ml_collections import ConfigDict
from PIL import Image

from mmjax.data.sources import make_source
from mmjax.train import plan
from mmjax.train.build import load_tokenizer, make_pipeline
from mmjax.train.check import check_data
from mmjax.train.features import prepare_features
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
    assert '<span class="slot">&lt;response 0-4&gt;</span>' in page


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


def test_a_mixture_is_checked_sketched_and_read(rows, tmp_path, capsys):
    """Own rows, one of them broken, and easy-VQA's questions, 1 : 3; from features and without."""
    (tmp_path / "1.png").write_bytes(b"\x89PNG not really")
    config = own_config(tmp_path, rows)
    stage = config["instruct"]
    own, asked = {"source": stage["data"]["source"]}, {"source": "easy-vqa?limit=50"}
    stage["data"] |= {"source": {"own": own, "asked": asked}, "weights": {"own": 1, "asked": 3}}
    assert check_data(config, tmp_path / "out")
    said = capsys.readouterr().out
    assert "60 records (50 asked, 10 own), " in said and "1 cannot be used" in said
    report = str(plan.dry_run(ConfigDict(config)))
    assert f"asked (easy-vqa/train) + own ({tmp_path}/own.jsonl), train: 60 records" in report
    features = prepare_features(config, tmp_path / "features")
    assert str(tmp_path / "2.png") in features and len(features.bad) == 1
    for stored in (None, features):
        pipeline = make_pipeline(
            stage["data"], stage["template"], load_tokenizer(config), batch_size=8, seed=0,
            features=stored,
        )  # fmt: skip
        batches = [pipeline.batch_at(step) for step in range(5)]  # all ten own rows
        assert all((batch.features is None) == (stored is None) for batch in batches)
        assert [(bad["id"], bad["row"]) for bad in pipeline.quarantine] == [("own.jsonl:2", 51)]


def test_pairs_that_differ(tmp_path):
    """Without the Q-Former that says what is ignored nothing is made; with one, a folder."""
    script, out = ("scripts/prepare_data.py", "differences"), f"--out={tmp_path / 'pairs'}"
    without = call(*script, out)
    assert without.returncode == 1 and "Traceback" not in without.stderr
    assert "differences needs --attention" in without.stderr and not (tmp_path / "pairs").exists()
    attention = "--attention=data.edits_stub:CornerAttention"
    paths = {"env": os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}}
    settings = ["--split=dev", "--limit=6", "--kinds=swap,add", "--edits=2"]
    made = call(*script, out, attention, *settings, **paths)
    assert made.returncode == 0, made.stderr
    assert "pairs is complete: 12 edits, 12 made, 0 skipped, 0 failed, 6 pictures" in made.stdout
    assert "kinds: 6 add, 6 swap" in made.stdout
    assert len(make_source(f"jsonl:{tmp_path}/pairs/pairs.jsonl", "train")) == 12
    other = call(*script, out, attention, *settings[:-1], **paths)
    assert other.returncode == 1 and "settings.edits: 2 there, 1 now" in other.stderr


def test_instructions(tmp_path):
    """Of easy-VQA without any option; the source that it names reads them."""
    script, out = ("scripts/prepare_data.py", "instructions"), f"--out={tmp_path / 'made'}"
    made = call(*script, out, "--limit=3", "--split=dev")
    assert made.returncode == 0, made.stderr
    assert "made is complete: 3 pictures, 0 too few regions, 12 replies, 0 failed" in made.stdout
    source = make_source(made.stdout.split("read them with ")[1].strip(), "train")
    assert set(source.kinds) == {"positive", "neg1", "neg2", "neg3"} and len(source) == 114
    assert source[0].media[0].data.is_file()


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


def test_every_part_that_cannot_be_used_stops_the_run_before_it_starts(rows, tmp_path):
    """All of them at once, in both ways: not made at all, and made of what cannot be read."""
    config = own_config(tmp_path, rows)
    data = config["instruct"]["data"]
    good = dict(source=data["source"])
    gone = [row | {"image": f"no/{n}.png"} for n, row in enumerate(rows)]
    (tmp_path / "gone.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gone))
    (tmp_path / "empty.jsonl").write_text("\n")
    parts = dict(
        good=good,
        gone=dict(source=f"jsonl:{tmp_path / 'gone.jsonl'}"),
        long=dict(source=good["source"], options=dict(prompts="entailment")),
    )
    data |= dict(source=parts, weights=dict.fromkeys(parts, 1.0))
    with pytest.raises(ValueError) as caught:
        train(config, tmp_path / "run")
    said = str(caught.value)
    assert "good: none" not in said
    for text in (
        "gone: none of 8 records of ",
        "no/0.png: the file cannot be read",
        "long: none of 8",
    ):
        assert text in said
    parts |= dict(
        empty=dict(source=f"jsonl:{tmp_path / 'empty.jsonl'}"), missing=dict(source="jsonl:x.jsonl")
    )
    data |= dict(weights=dict.fromkeys(parts, 1.0))
    with pytest.raises(ValueError) as caught:
        train(config, tmp_path / "run")
    for text in ("empty: ", "empty.jsonl holds no records", "missing: no such data file: x.jsonl"):
        assert text in str(caught.value)
    assert not (tmp_path / "run").exists()
