"""The benchmark of the data pipeline."""

import copy
import json

import pytest
from end_to_end.short import load_config

from mmjax.benchmark import data as benchmark
from mmjax.benchmark.data import data_waits, measure
from mmjax.train.config import resolve


def small(name: str, rows: int = 2) -> dict:
    config = copy.deepcopy(resolve(load_config(name)))
    for stage in config["stages"]:
        config[stage]["batch_size"] = rows
    return config


@pytest.fixture
def few_batches(monkeypatch):
    monkeypatch.setattr(benchmark, "BATCHES", 2)


def test_beside_a_loader(few_batches, tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    lines = measure(small("lmeye.py"), workers=(0,), rounds=3, steps=0, file=file)
    assert [line.name for line in lines] == ["mmjax, 0 threads", "torch DataLoader, 0 processes"]
    for line in lines:  # seconds are those of one batch
        assert float(line.further["samples/s"]) == pytest.approx(2 / line.seconds, rel=1e-3)
    page = capsys.readouterr().out
    assert "easy-vqa/train, batches of 2 rows, pictures of 64" in page
    assert json.loads(file.read_text())["data_wait"] == {}


def test_a_loader_reads_the_same_records():
    from mmjax.benchmark.torch_data import make_loader

    config = small("lmeye.py")
    data = config["instruct"]["data"]
    loader = make_loader(config, data, rows=2, batches=3, workers=0)
    batches = list(loader)
    pixels, ids, mask = batches[0]
    assert len(batches) == 3 and pixels.shape == (2, 3, 64, 64) and ids.shape == (2, 25)
    assert mask.any(dim=1).all() and (ids[~mask] == 0).all()
    again = next(iter(loader))
    assert not (again[0] == pixels).all(), "others each time"


def test_videos_and_texts_have_no_loader():
    config = small("lynx.py")
    made, notices = benchmark._loaders(config, config["pretrain"]["data"], 2, (0,))
    assert not made
    assert notices == [
        "No DataLoader beside it: this stage has videos, of which the counterpart decodes none."
    ]


def test_what_a_run_waits_for(monkeypatch):
    """Of all lines of a stage but its first, by how long they took."""
    seen = {}

    def train(config, workdir):
        seen.update(config)
        workdir.mkdir()
        waits = {
            "align": [(0.9, 9.0), (0.1, 1.0), (0.3, 3.0)],
            "instruct": [(0.5, 5.0), (0.0, 1.0)],
        }
        lines = [
            dict(stage=stage, data_wait=wait, seconds_per_step=seconds)
            for stage, each in waits.items()
            for wait, seconds in each
        ]
        (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))

    monkeypatch.setattr(benchmark, "train", train)
    config = small("lmeye.py")
    assert data_waits(config, 10) == pytest.approx(dict(align=0.25, instruct=0.0))
    assert seen["align"]["steps"] == 10 and seen["align"]["log_every"] == 2
    assert not seen["test"] and not seen["instruct"]["eval_at_end"]
    assert config["align"]["steps"] == 300, "the caller's config stays as it is"
    with pytest.raises(ValueError, match="a run of 1 steps has nothing to tell"):
        data_waits(config, 1)
    with pytest.raises(ValueError, match="stage 'x' is none of"):
        measure(config, stage="x")
