"""The main job, shortened: both stages on real pictures with the shipped towers."""

import contextlib
import copy
import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
from end_to_end.conftest import short_config
from end_to_end.short import load_config

from mmjax.data.features import FeatureStore, FeatureWriter, media_of
from mmjax.data.images import load_image
from mmjax.data.sources import make_source
from mmjax.nn.param import specs
from mmjax.systems.registry import make_system
from mmjax.train import loop
from mmjax.train.build import build, load_run
from mmjax.train.checkpoint import read_trainable
from mmjax.train.config import check, data_sections, resolve
from mmjax.train.evaluation import evaluate, question_section
from mmjax.train.features import picture_features, prepare_features
from mmjax.train.interrupt import Stopped
from mmjax.train.tower import Tower

STAGES = ("align", "instruct")


def trained(workdir, stage: str) -> dict[str, np.ndarray]:
    return read_trainable(str(workdir / "checkpoints" / stage))[0]


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir) -> list[tuple[str, int, float]]:
    return [
        (line["stage"], line["step"], line["loss"]) for line in lines(workdir) if "loss" in line
    ]


def test_each_step_compiles_once(finished):
    assert [step._cache_size() for step in finished.steps] == [1, 1]


def test_each_stage_says_what_kernel_attention_got(finished):
    assert finished.output.count("attention: clip 65 x 65: xla (cpu); decoder") == 2


def test_exactly_the_selected_parameters_change(finished):
    run = build(finished.config)
    before = run.params
    for stage, after in zip(STAGES, finished.stages, strict=True):
        moved = {path for path in after if not np.array_equal(before[path], after[path])}
        assert moved == set(run.selection(stage).trainable)
        before = after


def test_the_optimizer_holds_trainable_leaves_only(finished):
    run = build(finished.config)
    for stage in STAGES:
        folder = finished.workdir / "checkpoints" / stage / str(finished.config[stage]["steps"])
        stored = json.loads((folder / "optimizer" / "_METADATA").read_text())
        names = {
            ".".join(key["key"] for key in leaf["key_metadata"])
            for leaf in stored["tree_metadata"].values()
        }
        moments = {name.partition(".adam.mu.")[2] for name in names if ".adam.mu." in name}
        assert moments == set(run.selection(stage).trainable)


def test_the_run_directory_tells_the_story(finished):
    last = lines(finished.workdir)[-1]
    assert last["eval/accuracy"] == finished.metrics["eval/accuracy"]
    assert 0 <= last["eval/accuracy_mean_of_kinds"] <= 1
    for name in ("config.json", "curves.png", "samples.html", "tokenizer/tokenizer.json"):
        assert (finished.workdir / name).stat().st_size > 100
    for text in (
        "<media 0>",
        "<response 0-4> answer : [",
        "optimizer",
        "parameters train",
        "mean of kinds",
    ):
        assert text in finished.output, text


def test_stopped_twice_and_started_again_ends_the_same(finished, tmp_path, monkeypatch):
    num_tokens, calls = loop._num_tokens, []

    def stops(batch):  # called once in each step
        calls.append(1)
        if len(calls) in (4, 4 + 2 + 4):  # in align's step 4, then in instruct's
            raise KeyboardInterrupt
        return num_tokens(batch)

    monkeypatch.setattr(loop, "_num_tokens", stops)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            loop.train(short_config(), tmp_path)
    loop.train(short_config(), tmp_path)
    assert len(calls) == 4 + 2 + 4 + 4, "it did not go on from the last checkpoint"
    for stage in STAGES:
        whole, stopped = trained(finished.workdir, stage), trained(tmp_path, stage)
        assert whole.keys() == stopped.keys()
        assert all(np.array_equal(whole[path], stopped[path]) for path in whole), stage
    assert losses(finished.workdir) == losses(tmp_path)
    ends = [lines(workdir)[-1] for workdir in (finished.workdir, tmp_path)]
    assert ends[0] | {"time": 0} == ends[1] | {"time": 0}


def test_a_run_starts_from_a_finished_one(finished):
    config = short_config()
    config["weights"]["all"] = str(finished.workdir)
    params = build(config).params
    assert params.keys() == finished.stages[-1].keys()
    for path, value in finished.stages[-1].items():
        np.testing.assert_array_equal(params[path], value, err_msg=path)


def test_a_run_that_is_not_finite_stops_and_keeps_what_was_good(tmp_path):
    config = short_config()
    config["max_bad_steps"] = 3
    config["align"]["optimizer"] |= {"learning_rate": 1e30, "warmup_steps": 0}
    with pytest.raises(FloatingPointError, match=r"last 3 steps were not finite.*rows \[") as error:
        loop.train(config, tmp_path)
    assert "Lower the learning rate" in str(error.value)
    assert [line["skipped_steps"] for line in lines(tmp_path)] == [1, 2, 3]
    assert all(np.isfinite(value).all() for value in trained(tmp_path, "align").values())


def test_a_loss_scale_that_settles_stops_nothing_and_is_logged(tmp_path):
    config = aligning() | {"features": "step", "max_bad_steps": 1}
    config["model"]["dtype"] = "float16"
    config["align"]["optimizer"]["loss_scale"] = 2.0**40
    loop.train(config, tmp_path)
    assert [line["loss_scale"] for line in lines(tmp_path)] == [2.0**39, 2.0**38, 2.0**37]
    assert [line["skipped_steps"] for line in lines(tmp_path)] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path))


def test_stored_features_are_those_of_the_tower_in_the_step(finished):
    run, stage = load_run(finished.workdir)
    assert stage == "instruct"
    section = question_section(run.config, stage)
    with jax.set_mesh(run.mesh):
        features = picture_features(run, finished.workdir)
        stored, with_stored, _ = evaluate(run, run.params, section, features)
        _, with_frames, _ = evaluate(run, run.params, section, None)
        _, blind, _ = evaluate(run, run.params, section, features, without_picture=True)
        _, unaided, _ = evaluate(run, run.params, question_section(run.config, "align"), features)
    assert stored.overall == finished.metrics["eval/accuracy"], "load_run is not what was trained"
    assert [p.answer for p in with_stored] == [p.answer for p in with_frames]
    assert len(blind) == len(unaided) == len(with_stored) == 32


def aligning() -> dict:
    """Three steps of the first stage and no questions."""
    config = short_config()
    config["stages"], config["test"] = ["align"], {}
    config["align"] |= {"eval_at_end": False, "eval": {}, "steps": 3, "save_every": 0}
    return config


def test_pictures_and_stored_features_train_alike_bit_for_bit(tmp_path):
    config = aligning()
    prepare_features(config, tmp_path / "features")
    pictures, stored = tmp_path / "pictures", tmp_path / "stored"
    loop.train(config | {"features": "step"}, pictures)
    loop.train(config | {"features": str(tmp_path / "features")}, stored)
    assert losses(stored) == losses(pictures)
    weights, others = trained(pictures, "align"), trained(stored, "align")
    assert weights.keys() == others.keys()
    assert all(np.array_equal(weights[path], others[path]) for path in weights)


@pytest.mark.parametrize(
    ("number", "code", "lost"), [(signal.SIGTERM, 0, ()), (signal.SIGINT, 130, (Stopped,))]
)
def test_told_to_stop_while_features_are_computed(tmp_path, monkeypatch, number, code, lost):
    """Nothing is left of them that a later run would trust; started again, it goes on.

    Also if what the signal raises is ``lost`` in a callback.
    """
    features, handler, calls = Tower.features, signal.getsignal(number), []

    def disturbed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            assert len(list(tmp_path.glob("features.*.incomplete"))) == 1
            with contextlib.suppress(*lost):
                signal.raise_signal(number)
        return features(*arguments)

    monkeypatch.setattr(Tower, "features", disturbed)
    with pytest.raises(Stopped) as stopped:
        loop.train(aligning(), tmp_path)
    assert stopped.value.code == code and len(calls) == 3
    assert signal.getsignal(number) is handler
    assert not list(tmp_path.glob("features*")) and not (tmp_path / "checkpoints").exists()
    if number == signal.SIGTERM:
        loop.train(aligning(), tmp_path)
        pictures = make_source("easy-vqa", "train", task="caption", limit=400)
        assert len(FeatureStore(tmp_path / "features")) == len(list(media_of(pictures)))
        assert [step for _, step, _ in losses(tmp_path)] == [1, 2, 3]


def raises(message: str | None):
    return pytest.raises(ValueError, match=message) if message else contextlib.nullcontext()


def test_features_of_another_tower_are_refused(finished, tmp_path, capsys):
    config = copy.deepcopy(finished.config) | {"features": str(finished.workdir / "features")}
    run = build(config)
    with jax.set_mesh(run.mesh):
        assert len(picture_features(run, finished.workdir)) > 0
        path = "clip.visual_projection.kernel"
        run.params[path] = run.params[path] + 1
        with pytest.raises(ValueError, match=r"(?s)are not what this tower would give.*weights: "):
            picture_features(run, finished.workdir)
    for section in data_sections(config).values():
        section["data"] = section["data"] | {"preparation": "squash"}
    with jax.set_mesh(run.mesh), pytest.raises(ValueError) as error:
        picture_features(build(config), finished.workdir)
    said = "pictures: CLIP's preparation, 64x64 there, squashed, 64x64 here"
    assert said in str(error.value) and "weights: " not in str(error.value)
    config["align"]["data"] = config["align"]["data"] | {"preparation": "clip"}
    with pytest.raises(
        ValueError, match="one image_size, preparation and num_frames in all data sections"
    ):
        picture_features(dataclasses.replace(run, config=config), finished.workdir)
    config = copy.deepcopy(finished.config)
    for width, message in ((3, r"shape \(3,\), the tower gives \(128,\)"), (128, None)):
        config["features"] = str(tmp_path / str(width))
        with FeatureWriter(config["features"], fingerprint=None) as writer:
            writer.add(["a"], np.zeros((1, width), np.float32))
        with jax.set_mesh(run.mesh), raises(message):
            store = picture_features(dataclasses.replace(run, config=config), finished.workdir)
    assert store.fingerprint is None and "was imported" in capsys.readouterr().out
    config["features"] = str(finished.workdir / "nothing")
    with pytest.raises(FileNotFoundError, match="prepare_data.py features"):
        picture_features(dataclasses.replace(run, config=config), finished.workdir)


def test_another_config_is_refused(finished):
    changed = copy.deepcopy(finished.config)
    changed["seed"], changed["instruct"]["steps"] = 1, 9
    with pytest.raises(ValueError, match=r"(?s)instruct.steps: 6 -> 9.*seed: 0 -> 1"):
        loop.train(changed, finished.workdir)


def test_bad_pictures_are_replaced_and_counted(tmp_path):
    """Own data through the same job: a missing, a broken and eighteen good pictures."""
    picture = load_image(_a_picture())
    rows = []
    for i in range(20):
        picture.save(tmp_path / f"{i}.png")
        rows.append(
            {"image": f"{i}.png", "question": "what shape is in the image?", "answer": "circle"}
        )
    (tmp_path / "3.png").unlink()
    (tmp_path / "4.png").write_bytes(b"\x89PNG not really")
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = short_config()
    config["stages"], config["test"], config["features"] = ["instruct"], {}, "step"
    config["instruct"] |= {"eval_at_end": False, "eval": {}, "save_every": 0}
    config["instruct"]["data"] |= {"source": f"jsonl:{tmp_path / 'own.jsonl'}", "options": {}}
    loop.train(config, tmp_path / "run")
    bad = [
        json.loads(line)
        for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()
    ]
    assert {record["id"] for record in bad} == {"own.jsonl:4", "own.jsonl:5"}
    assert "3.png" in bad[0]["reason"] + bad[1]["reason"]
    assert lines(tmp_path / "run")[-1]["bad_samples"] == 2
    for i in range(12):  # more than half: it stops, and the list is there
        (tmp_path / f"{i}.png").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"more than 10 of 20 records(?s:.*)own.jsonl:\d+"):
        loop.train(config, tmp_path / "stops")
    assert len((tmp_path / "stops" / "bad_samples.jsonl").read_text().splitlines()) >= 11


def _a_picture():
    return make_source("easy-vqa", "test", limit=1)[0].media[0]


def test_the_config_is_checked_at_once():
    with pytest.raises(ValueError) as error:
        resolve(load_config("lmeye.py:vicuna-7b"))
    for name in (
        "tokenizer",
        "weights.language",
        "weights.clip",
        "align.data.source",
        "instruct.data.source",
    ):
        assert name in str(error.value)
    wrong = load_config("lmeye.py")
    wrong.unlock()
    wrong.instruct.stepz = 3
    wrong.instruct.accumulation = 7
    wrong.features = "nowhere"
    wrong.test.data.pictures = -1
    wrong.align.optimizer.loss_scale = 65536.0
    wrong.align.data.preparation = wrong.instruct.eval.data.preparation = "crop"
    wrong.instruct.data.preparation = "zoom"
    with pytest.raises(ValueError) as error:
        resolve(wrong)
    half = load_config("lmeye.py")
    half.model.dtype = "float16"
    half.unlock()
    half.align.optimizer.loss_scale = -1
    problems = "\n".join(check(half)[1])
    assert "instruct.optimizer.loss_scale is not set: gradients would vanish" in problems
    assert "align.optimizer.loss_scale is -1, it must be above 0" in problems
    for problem in (
        "features is 'nowhere'",
        "instruct.stepz is read by nothing",
        "does not divide into 7",
        "align.optimizer.loss_scale is 65536.0, but model.dtype is float32",
        "test.data.pictures is -1, it must be a whole number, at least 0",
        "instruct.data.preparation is 'zoom', it must be one of clip, center, squash, crop",
        "align.data.preparation is 'crop', which shows another part of a picture each time",
        "instruct.eval.data.preparation is 'crop', which is random and for training alone",
    ):
        assert problem in str(error.value)


@pytest.mark.parametrize("variant", ["llama-7b", "llama-13b", "vicuna-7b", "vicuna-13b"])
def test_full_size_variants_have_the_published_sizes(variant):
    wanted = specs(make_system("lmeye", load_config(f"lmeye.py:{variant}").to_dict()["model"]))
    sizes = {"language": 0, "clip": 0, "own": 0}
    for path, spec in wanted.items():
        part = path.split(".")[0]
        if not path.endswith("embedding.added"):
            sizes[part if part in sizes else "own"] += spec.size
    language, own = {
        "7b": (6_738_415_616, 25_006_592),
        "13b": (13_015_864_320, 30_519_808),
    }[variant.split("-")[1]]
    assert sizes == {"language": language, "clip": 427_616_513, "own": own}


def test_unknown_variant():
    with pytest.raises(ValueError, match="llama-7b"):
        load_config("lmeye.py:llama-70b")
