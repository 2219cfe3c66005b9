"""What a run starts from: whole models fit, or are refused with all that is different."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from end_to_end.short import load_config
from ml_collections import ConfigDict

from conversion.runs import read_run
from conversion.store import save_imported
from mmjax.data.templates import from_json, to_json
from mmjax.nn.param import specs
from mmjax.parallel.mesh import make_mesh
from mmjax.systems.registry import make_system
from mmjax.train import build, plan
from mmjax.train.build import stage_selection
from mmjax.train.checkpoint import Checkpointer
from mmjax.train.config import check, resolve
from mmjax.train.origin import starting_weights
from mmjax.train.workdir import check_claim, claim, stage_directory


def imported(folder, config: dict, **changes) -> str:
    """An imported checkpoint without parameters, whose template has ``changes``."""
    template = from_json(config["instruct"]["template"])
    header = {key: config[key] for key in ("system", "variant", "model")}
    header["template"] = to_json(dataclasses.replace(template, **changes))
    save_imported(folder, header, {"none": np.zeros(1, np.float32)}, {})
    return str(folder)


def trained(folder, config: dict, seed: int = 0, steps: int | None = None) -> str:
    """The directory of a run that has drawn its weights, or stopped after so many ``steps``."""
    claim(folder, config)
    wanted, rng = specs(make_system(config["system"], config["model"])), np.random.default_rng(seed)
    for stage in config["stages"]:
        paths = stage_selection(config, stage, wanted).trainable
        arrays = {path: rng.normal(size=wanted[path].shape).astype(np.float32) for path in paths}
        checkpointer = Checkpointer(str(stage_directory(folder, stage)), 1)
        checkpointer.save(steps or config[stage]["steps"], arrays, {"n": np.int32(0)}, {})
        checkpointer.close()
    return str(folder)


def only(config: dict, *stages: str) -> dict:
    return config | {"stages": list(stages)}


def untested(config: ConfigDict) -> ConfigDict:
    """Without questions, and with few pictures: a dry run looks at them all."""
    del config.instruct.data["weights"]
    for stage in (config.align, config.instruct):
        stage.eval, stage.eval_at_end = {}, False
    config.align.data.options.limit = 20
    config.instruct.data.options = {"limit": 20}
    config.test = {}
    return config


@pytest.fixture
def config() -> ConfigDict:
    return load_config("lmeye.py")


def test_another_template_is_refused_field_by_field(config, tmp_path):
    plain = resolve(config)
    config.weights.all = imported(tmp_path / "same", plain)
    assert resolve(config)["weights"]["any_template"] is False
    config.weights.all = other = imported(tmp_path / "other", plain, num_responses=3, cue="\n=")
    with pytest.raises(ValueError) as error:
        resolve(config)
    assert str(error.value).splitlines() == [
        "1 problems in the config:",
        f"  weights.all: {other} has another lmeye-question template than instruct, instruct.eval, "
        "test:",
        "    num_responses: 3 there, 5 here",
        "    cue: '\\n=' there, '\\nAnswer:' here",
        "    give the same (--config.instruct.template.num_responses=... "
        "--config.instruct.template.cue=... --config.instruct.eval.template.num_responses=... "
        "--config.instruct.eval.template.cue=... --config.test.template.num_responses=... "
        "--config.test.template.cue=...), or, if the change is wanted, "
        "--config.weights.any_template=True",
    ]
    for section in (config.instruct, config.instruct.eval, config.test):
        section.template.update(num_responses=3, cue="\n=")
    resolve(config)
    config.weights.all = imported(tmp_path / "blind", plain, interaction="blind")
    assert "interaction: 'blind' there, 'request' here" in check(config)[1][0]
    config.weights.any_template = True
    assert check(config)[1] == []


def test_templates_of_a_run_are_those_of_its_stages(config, tmp_path):
    plain = resolve(config)
    config.weights.all = both = trained(tmp_path / "both", plain)
    assert check(config)[1] == []
    config.instruct.template.num_responses = 4
    (problem,) = check(config)[1]
    assert f"{both} (instruct) has another lmeye-question template than instruct" in problem
    assert "num_responses: 5 there, 4 here" in problem
    config.weights.all = trained(tmp_path / "first", only(plain, "align"))
    assert check(config)[1] == [], "a stage that is new may ask as it likes"
    config.align.template.before = "Picture: "
    (problem,) = check(config)[1]
    assert "first (align) has another lmeye-caption template than align:" in problem
    assert "before: 'Image: ' there, 'Picture: ' here" in problem

    later = only(resolve(load_config("lmeye.py")), "align")
    later["weights"]["all"] = both
    config.weights.all = trained(tmp_path / "later", later)
    problems = check(config)[1]
    assert [problem.split(" has ")[0] for problem in problems] == [
        f"weights.all: {tmp_path}/later (align)", f"weights.all: {both} (instruct)",
    ]  # fmt: skip


def test_a_template_that_is_not_known_here(config, tmp_path):
    plain = resolve(config)
    config.weights.all = trained(tmp_path / "run", only(plain, "instruct"))
    header = json.loads((tmp_path / "run" / "config.json").read_text())
    header["instruct"]["template"]["colour"] = "red"
    (tmp_path / "run" / "config.json").write_text(json.dumps(header))
    (problem,) = check(config)[1]
    assert "unknown fields ['colour']" in problem and str(tmp_path / "run") in problem
    header["instruct"]["template"] = {"template": "of tomorrow"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(header))
    assert check(config)[1] == [], "none of the stages asks like that"


def test_another_system_is_refused(config, tmp_path):
    foundation = resolve(load_config("foundation.py:llama"))
    claim(tmp_path / "run", foundation)
    save_imported(tmp_path / "imported", {"system": "llama"}, {"none": np.zeros(1, np.float32)}, {})
    for name, system in (("run", "language_model"), ("imported", "llama")):
        config.weights.all = str(tmp_path / name)
        with pytest.raises(ValueError, match=f"of the system '{system}', the .* 'lmeye'"):
            resolve(config)


def test_a_run_starts_from_what_others_trained(config, tmp_path):
    """Its own sources first, then run after run and stage after stage."""
    plain = resolve(config)
    wanted = specs(make_system("lmeye", plain["model"]))
    first = trained(tmp_path / "first", plain)
    before = starting_weights({"weights": {"all": first}}, wanted)
    assert before.keys() == wanted.keys()
    sources = starting_weights(plain, wanted)
    moved = set(stage_selection(plain, "instruct", wanted).trainable)
    assert sources.keys() == wanted.keys() - moved
    assert all(np.array_equal(before[path], sources[path]) for path in sources)

    later = only(plain, "align") | {"weights": plain["weights"] | {"all": first}}
    second = trained(tmp_path / "second", later, seed=1)
    after = starting_weights({"weights": {"all": second}}, wanted)
    aligned = set(stage_selection(plain, "align", wanted).trainable)
    assert aligned == {path for path in wanted if not np.array_equal(before[path], after[path])}
    assert read_run(second).entries.keys() == wanted.keys()

    config.weights.all, config.align.template.after = second, "!"
    report = plan.dry_run(untested(config))
    assert report.problems == check(config)[1] and "after: '.' there" in report.problems[0]
    assert f"then {second}: {len(aligned)} arrays that its align trained" in str(report)
    assert "created from the seed" not in str(report)


def test_a_part_starts_from_a_run_of_a_foundation(tmp_path):
    """What `configs/lmeye.py` says of a tiny language model that is not shipped."""
    run = trained(tmp_path / "opt", resolve(load_config("foundation.py:opt")))
    made = read_run(run)
    assert made.config["system"] == "opt" and "architecture" not in made.config["model"]
    config = load_config("lmeye.py:tiny-opt")
    config.weights.language = run
    plain, problems = check(config)
    assert problems == []
    wanted = specs(make_system("lmeye", plain["model"]))
    given = starting_weights(plain, wanted)
    for path, entry in made.entries.items():
        np.testing.assert_array_equal(given[f"language.{path}"], entry.load())
    assert {path for path in wanted if path.startswith("language.")} <= given.keys()
    assert not given["language.embedding.added"].any()


def test_a_run_that_does_not_fit_says_all(config, tmp_path):
    plain = resolve(config)
    run = trained(tmp_path / "run", plain)
    model = plain["model"] | {"num_responses": 3, "num_prompts": 2}
    with pytest.raises(ValueError) as error:
        starting_weights({"weights": {"all": run}}, specs(make_system("lmeye", model)))
    assert "4 arrays that the run" in str(error.value)
    for path in ("response_linear.kernel", "response_linear.bias", "decomposition.kernel"):
        assert f"\n  {path}: (" in str(error.value)
    half = trained(tmp_path / "half", only(plain, "instruct"), steps=300)
    steps = plain["instruct"]["steps"]
    with pytest.raises(
        ValueError, match=f"'instruct' of the run is at step 300 of {steps}; finish"
    ):
        starting_weights({"weights": {"all": half}}, specs(make_system("lmeye", plain["model"])))


def test_a_run_may_be_started_again_with_other_patience_and_workers(config, tmp_path):
    """The keys say what is refused, who reads, and how long is waited; they make no other run."""
    claim(tmp_path, resolve(config))
    config.weights.any_template, config.num_workers, config.patience = True, 3, 300.0
    check_claim(tmp_path, resolve(config))
    config.seed = 1
    with pytest.raises(ValueError, match="another config.*\n  seed: 0 -> 1$"):
        check_claim(tmp_path, resolve(config))
    config.patience, config.num_workers = -1.0, 0
    assert check(config)[1] == [
        "patience is -1.0, it must be seconds, or 0 to wait for ever",
        "num_workers is 0, it must be 1 or more: threads that read data",
    ]


def test_a_run_reads_as_its_config_says(config, monkeypatch):
    config.num_workers, config.patience = 3, 300.0
    given = {}
    monkeypatch.setattr(build, "make_pipeline", lambda *_, **settings: given.update(settings))
    run = build.Run(resolve(config), *[None] * 4, make_mesh(devices=jax.devices()[:1]))
    run.pipeline(dict(source="x"), {}, batch_size=8)
    assert (given["num_workers"], given["patience"], given["host"]) == (3, 300.0, (0, 1))


def test_another_lora_is_refused(config, tmp_path):
    """Its arrays do not tell how they are scaled."""
    lora = dict(target=r"language\.layers\.attention\.q", rank=2, alpha=4.0)
    config.model.lora = ConfigDict(lora)
    config.weights.all = given = imported(tmp_path / "given", resolve(config))
    assert check(config)[1] == []
    config.model.lora.dropout = 0.5
    assert check(config)[1] == [], "how it was trained says nothing of how it is read"
    del config.model.lora["alpha"]
    (problem,) = check(config)[1]
    assert "alpha: 4.0 there, 32.0 here" in problem and "merge --checkpoint" in problem
    del config.model["lora"]
    (problem,) = check(config)[1]
    assert (
        f"{given} has LoRA, and the config's is another" in problem and "rank: 2 there" in problem
    )
    config.weights.all = ""
    config.weights.all = imported(tmp_path / "plain", resolve(config))
    config.model.lora = ConfigDict(lora)
    assert check(config)[1] == [], "it starts anew"
