"""Several sources as one: ``data.source`` as a mapping."""

import collections
import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from mmjax.data import lynx
from mmjax.data.batch import Batch
from mmjax.data.check import Pictures, check_source
from mmjax.data.example import BadSample
from mmjax.data.features import media_of
from mmjax.data.mixture import weighted_order
from mmjax.data.pipeline import Pipeline
from mmjax.data.sequence import Lengths
from mmjax.data.sources import SOURCES, make_source
from mmjax.data.sources.mixture import Mixture, named
from mmjax.data.templates import LMEyeQuestion
from mmjax.train import config as configs
from mmjax.train.contributions import Contributions


@pytest.fixture
def parts(tmp_path, pictures):
    """Two files of 8 and 40 questions about twelve pictures."""
    found = {}
    for name, count in (("pairs", 8), ("captions", 40)):
        rows = [
            {"id": f"{name} {n}", "image": str(pictures[n % 12]), "question": "what is this?",
             "answer": "one", "kind": "own"}
            for n in range(count)
        ]  # fmt: skip
        (tmp_path / f"{name}.train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        found[name] = dict(source=f"jsonl:{tmp_path / name}.{{split}}.jsonl")
    return found


def pipeline(source, tokenizer, **settings) -> Pipeline:
    template = LMEyeQuestion(image_token=1000, slot_token=1001, num_responses=2)
    common = dict(lengths=Lengths(target=8, prefix=20, request=1), image_size=4, seed=0)
    return Pipeline(source, template, tokenizer, batch_size=11, **common | settings)


def test_records_of_all_parts(parts):
    """Whichever comes first in the config; kinds are the names of the parts."""
    source = make_source(parts, "train")
    backwards = make_source(dict(reversed(parts.items())), "train")
    assert len(source) == 48 and source.kinds == ["captions"] * 40 + ["pairs"] * 8
    assert [source[i].id for i in (0, 39, 40, 47)] == [
        "captions 0", "captions 39", "pairs 0", "pairs 7",
    ]  # fmt: skip
    assert [source[i] for i in range(48)] == [backwards[i] for i in range(48)]
    assert source[0].info["kind"] == "own"
    assert [source[i].info["part"] for i in (39, 40)] == ["captions", "pairs"]
    with pytest.raises(IndexError, match="48 records, there is no 48"):
        source[48]
    assert "captions (/" in source.name and " + pairs (/" in source.name
    assert named(parts).startswith("captions (jsonl:/") and named("easy-vqa") == "easy-vqa"


def test_split_and_options_of_a_part():
    source = make_source(
        {
            "questions": dict(source="easy-vqa", options=dict(limit=3)),
            "captions": dict(source="easy-vqa?task=caption&limit=2", split="dev"),
        },
        "test",
    )
    assert [source[i].id for i in range(5)] == [
        "easy-vqa/dev/caption/0", "easy-vqa/dev/caption/1",
        "easy-vqa/test/0", "easy-vqa/test/1", "easy-vqa/test/2",
    ]  # fmt: skip


def test_shares_of_every_batch(parts, tokenizer):
    """Cheetor's 24 : 64 as 3 : 8 of each 11 rows, whatever the sizes of the sources."""
    source = make_source(parts, "train")
    weights = dict(pairs=24, captions=64)
    rows = pipeline(source, tokenizer, weights=weights)
    for step in (0, 1, 700):
        batch = rows.batch_at(step)
        drawn = [rows._order[int(row)] for row in batch.row_id]
        assert isinstance(batch, Batch) and batch.frames.shape[0] == 11
        counts = collections.Counter(source.kinds[record] for record in drawn)
        assert counts == {"pairs": 3, "captions": 8}
    with pytest.raises(ValueError, match=r"no such kinds \['pears'\], no weight for \['pairs'\]"):
        pipeline(source, tokenizer, weights=dict(pears=1, captions=1))


def test_pictures_of_all_parts_once(parts):
    assert len(list(media_of(make_source(parts, "train")))) == 12


def test_bad_records_are_counted_and_named(parts, tokenizer, pictures):
    source = make_source(parts, "train")
    broken = pictures[0].with_name("gone.png")

    class Broken:
        name, kinds, notices = "broken", ["", ""], ("half of it is missing",)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise BadSample(self.name, index, f"no {broken.name}")

    mixed = Mixture(source.parts | {"broken": Broken()})
    checked = check_source(pipeline(mixed, tokenizer), Pictures(None), num_samples=2)
    assert checked.kinds == {"broken": 2, "captions": 40, "pairs": 8}
    assert [(entry["row"], entry["reason"]) for entry in checked.bad] == [
        (0, "broken, record 0: no gone.png"), (1, "broken, record 1: no gone.png"),
    ]  # fmt: skip
    assert checked.notices == ("broken: half of it is missing",)
    shares = dict(broken=1, captions=1, pairs=1)
    rows = pipeline(mixed, tokenizer, weights=shares)
    frames = [rows.batch_at(step).frames for step in range(3)]  # replaced by others
    assert np.stack(frames).shape == (3, 11, 1, 4, 4, 3) and len(rows.quarantine) == 2


def test_all_wrong_parts_at_once(parts):
    wrong = parts | {
        "first": dict(source="easy-vqq"),
        "second": dict(source="jsonl:nowhere.jsonl"),
        "third": dict(name="easy-vqa"),
        "fourth": dict(source="easy-vqa", options=dict(limits=3)),
        "fifth": dict(source="easy-vqa", weight=3),
    }
    with pytest.raises(ValueError) as caught:
        make_source(wrong, "train")
    said = str(caught.value).split("\n")
    for line, text in zip(
        said,
        (
            "first: no source named 'easy-vqq'; did you mean easy-vqa",
            "second: no such data file: nowhere.jsonl",
            "third: expected dict(source=NAME)",
            "fourth: the source easy-vqa has no option limits",
            "fifth: expected dict(source=NAME)",
        ),
        strict=True,
    ):
        assert line.startswith(text)
    with pytest.raises(ValueError, match="a mixture without parts"):
        make_source({}, "train")
    with pytest.raises(ValueError, match="parts have the options"):
        make_source(parts, "train", limit=3)


def problems(**data) -> list[str]:
    """Those of LMEye's config with its instruction data changed, which has none otherwise."""
    from end_to_end.short import get_config

    config = get_config()
    changed = config.instruct.data.to_dict() | data
    config.instruct.data = ConfigDict({k: v for k, v in changed.items() if v is not None})
    return configs.check(config)[1]


def test_a_config_is_checked_before_anything_is_read():
    good = dict(a=dict(source="easy-vqa"), b=dict(source="easy-vqa", split="dev", options={}))
    assert problems(source=good, options=None, weights=dict(a=24, b=64)) == []
    assert problems(source=good, options=None) == [
        "instruct.data.source is a mixture: say how much of each in instruct.data.weights = "
        "dict(a=..., b=...)"
    ]
    bad = dict(a=dict(source=""), b=dict(source="easy-vqa", splits="dev"))
    assert problems(source=bad, options=dict(limit=3), weights=dict(a=1, c=2)) == [
        "instruct.data.source.a.source is not set: give --config.instruct.data.source.a.source="
        "jsonl:FILE or a data set's name, or leave it out: --config.instruct.data.weights.a=0",
        "instruct.data.source.b: expected dict(source=NAME), and split and options if need be; got "
        "{'source': 'easy-vqa', 'splits': 'dev'}",
        "instruct.data.options: the options of a mixture belong into its parts",
        "instruct.data.weights are of a, c; the mixture is of a, b",
    ]


def test_a_share_of_zero_leaves_a_part_out():
    parts = dict(a=dict(source=""), b=dict(source="easy-vqa"))
    assert problems(source=parts, options=None, weights=dict(a=0, b=64)) == []
    left = configs._without_empty_shares(
        dict(stages=["s"], s=dict(data=dict(source=parts, weights=dict(a=0, b=64))))
    )
    assert left["s"]["data"] == dict(source=dict(b=dict(source="easy-vqa")), weights=dict(b=64))


def test_many_small_shares_are_met():
    """Lynx's 32, within a few rows: closer than chance would come. The order far out is the same
    whatever was asked for before."""
    weights = {name: one.share for name, one in lynx.FINETUNE.items()}
    source = Mixture({name: Numbered(name, 3000 + n) for n, name in enumerate(weights)})
    order = weighted_order(source, weights, seed=0)
    drawn = [source.kinds[order[i]] for i in range(10_000)]
    for number, most in ((1000, 4), (10_000, 6)):
        counts = collections.Counter(drawn[:number])
        for name, share in weights.items():
            assert abs(counts[name] - number * share / 99.999) < most, name
    again, far = weighted_order(source, weights, seed=0), 10**9
    assert [again[far + i] for i in range(50)] == [order[far + i] for i in range(50)]


class Numbered:
    """Records without content."""

    def __init__(self, name: str, count: int):
        self.name, self.kinds = name, [""] * count

    def __len__(self):
        return len(self.kinds)


def test_rows_of_each_source_are_counted(parts, tokenizer, pictures, tmp_path):
    """Where they were read from, also in place of a bad record; from a saved count on."""
    rows = [{"image": "gone.png", "question": "what?", "answer": "one"}] * 6
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = dict(bad=dict(source=f"jsonl:{tmp_path / 'bad.jsonl'}"))
    source = make_source(parts | bad, "train")
    weights = dict(pairs=3.0, captions=6.0, bad=2.0)
    whole, halves = (pipeline(source, tokenizer, weights=weights) for _ in range(2))
    given = Contributions(whole, {})
    for step in range(1, 7):
        whole.batch_at(step - 1)
        given.add(step)
    counts = given.read()
    assert counts["bad"] == 0 and sum(counts.values()) == 66 and counts["captions"] > 36
    assert given.read() == counts
    first = Contributions(halves, {})
    for step in (1, 2, 3):
        halves.batch_at(step - 1)
        first.add(step)
    goes_on = pipeline(source, tokenizer, weights=weights)
    rest = Contributions(goes_on, json.loads(json.dumps(first.read())))
    for step in (4, 5, 6):
        goes_on.batch_at(step - 1)
        rest.add(step)
    assert rest.read() == counts
    assert re.search(r"bad +0 +0.000 % +18.182 %", rest.table())
    plain = Contributions(pipeline(make_source(parts, "train"), tokenizer), {})
    plain.add(1)
    assert plain.read() == {}


def test_a_part_without_records_is_named(parts, monkeypatch):
    monkeypatch.setitem(SOURCES, "nothing", lambda split: Numbered("nothing", 0))
    wrong = parts | dict(first=dict(source="nothing"), second=dict(source="jsonl:gone.jsonl"))
    with pytest.raises(
        ValueError, match="first: nothing has no records\nsecond: no such data file"
    ):
        make_source(wrong, "train")
