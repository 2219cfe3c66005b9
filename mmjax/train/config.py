"""From an ml_collections config to the plain values that a run is made of, checked before anything
is loaded."""

import dataclasses
import itertools
from pathlib import Path

from ml_collections import ConfigDict

from mmjax.data.images import PREPARATIONS
from mmjax.data.pipeline import FRAME_CHOICES
from mmjax.data.sources.mixture import part_problem
from mmjax.data.templates import from_json, to_json
from mmjax.nn.lora import LoraConfig
from mmjax.train import origin
from mmjax.train.optim import OptimizerConfig

TOP = (
    "system variant model seed weights tokenizer frozen_dtype features mesh preset max_bad_steps "
    "max_bad_fraction num_workers patience stages test"
).split()
STAGE = (
    "steps batch_size accumulation data template train optimizer log_every eval_every eval_at_end "
    "eval save_every keep_checkpoints label_smoothing"
).split()
DATA = (
    "source split options lengths image_size pictures preparation num_frames frame_choice weights "
    "overlong pack buckets"
).split()
QUESTIONS = "data template batch_size max_new_tokens".split()
# Section -> what a command line may give although the config's file leaves it to its default.
OPTIONAL = {
    "": ["num_workers", "patience"],
    "model": ["lora", "int8"],  # a Python dict of LoraConfig's fields; a regular expression
    "data": "image_size pictures preparation num_frames frame_choice overlong pack buckets".split(),
    "optimizer": list(OptimizerConfig.__dataclass_fields__),
}


def resolve(config: ConfigDict) -> dict:
    """Plain nested values, JSON-able.

    Raises:
      ValueError: all keys that nothing reads, values that a user has yet to give (empty), and
        settings that contradict each other, at once.
    """
    plain, problems = check(config)
    if problems:
        raise ValueError(f"{len(problems)} problems in the config:\n  " + "\n  ".join(problems))
    return plain


def check(config: ConfigDict) -> tuple[dict, list[str]]:
    """(plain nested values, what is wrong with them, see `resolve`)."""
    plain = _without_empty_shares(_plain(config.to_dict()))
    problems = _unknown("", plain, [*TOP, *plain.get("stages", ())])
    problems += [
        f"{name} is not set: give --config.{name}=..." for name in ("tokenizer",) if not plain[name]
    ]
    problems += [
        f"weights.{part} is not set: give --config.weights.{part}="
        "<Hugging Face folder or imported checkpoint>"
        for part, where in origin.parts(plain).items()
        if not where and not plain["weights"].get("all")
    ]
    if not (plain.get("patience", 60) >= 0):
        problems.append(
            f"patience is {plain['patience']}, it must be seconds, or 0 to wait for ever"
        )
    workers = plain.get("num_workers", 1)
    if not isinstance(workers, int) or workers < 1:
        problems.append(f"num_workers is {workers!r}, it must be 1 or more: threads that read data")
    if plain["features"] not in ("once", "step"):
        if not Path(plain["features"]).is_dir():
            problems.append(
                f"features is {plain['features']!r}, it must be 'once', 'step' or a folder that "
                "scripts/prepare_data.py features has made"
            )
        plain["features"] = str(Path(plain["features"]).resolve())  # for a later evaluation
    for stage in plain["stages"]:
        problems += _stage_problems(stage, plain[stage])
        problems += _scale_problems(stage, plain[stage], plain["model"].get("dtype"))
    if plain.get("test"):
        problems += _questions_problems("test", plain["test"])
    for name, section in data_sections(plain).items():
        problems += _picture_problems(
            f"{name}.data",
            section["data"],
            is_trained=name in plain["stages"],
            features=plain["features"],
        )
    return plain, problems + _origin_problems(plain)


def data_sections(config: dict) -> dict[str, dict]:
    """Name -> each section of a resolved config that has ``data``: stages, their ``eval``,
    ``test``."""
    sections = {}
    for stage in config["stages"]:
        sections |= {stage: config[stage], f"{stage}.eval": config[stage]["eval"]}
    sections["test"] = config.get("test")
    return {name: section for name, section in sections.items() if section}


def _stage_problems(name: str, stage: dict) -> list[str]:
    problems = _unknown(f"{name}.", stage, STAGE)
    problems += _unknown(
        f"{name}.optimizer.", stage["optimizer"], OptimizerConfig.__dataclass_fields__
    )
    problems += _data_problems(f"{name}.data", stage["data"]) + _template_problems(
        name, stage["template"]
    )
    if isinstance(stage["data"]["source"], dict) and not stage["data"].get("weights"):
        problems.append(
            f"{name}.data.source is a mixture: say how much of each in {name}.data.weights = "
            f"dict({', '.join(f'{part}=...' for part in stage['data']['source'])})"
        )
    for key in ("steps", "batch_size", "accumulation", "log_every", "keep_checkpoints"):
        if stage[key] < 1:
            problems.append(f"{name}.{key} is {stage[key]}, it must be at least 1")
    if not 0 <= (smoothing := stage.get("label_smoothing", 0.0)) < 1:
        problems.append(f"{name}.label_smoothing is {smoothing}, it must be at least 0, below 1")
    if stage["accumulation"] >= 1 and stage["batch_size"] % stage["accumulation"]:
        problems.append(
            f"{name}.batch_size {stage['batch_size']} does not divide into "
            f"{stage['accumulation']} equal slices ({name}.accumulation)"
        )
    if (stage["eval_every"] or stage["eval_at_end"]) and not stage["eval"]:
        problems.append(f"{name} is to be evaluated, but {name}.eval is empty")
    if stage["eval"]:
        problems += _questions_problems(f"{name}.eval", stage["eval"])
    return problems


def _scale_problems(name: str, stage: dict, dtype: str | None) -> list[str]:
    scale, key = stage["optimizer"].get("loss_scale"), f"{name}.optimizer.loss_scale"
    if scale is None and dtype == "float16":
        return [
            f"model.dtype is float16, and {key} is not set: gradients would vanish below float16's "
            f"smallest number; give --config.{key}=65536, or --config.model.dtype=bfloat16"
        ]
    if scale is not None and dtype != "float16":
        return [f"{key} is {scale}, but model.dtype is {dtype}: only float16 needs a loss scale"]
    if scale is not None and not 0 < scale < float("inf"):
        return [f"{key} is {scale}, it must be above 0; torch starts with 65536"]
    return []


def _questions_problems(name: str, section: dict) -> list[str]:
    problems = _unknown(f"{name}.", section, QUESTIONS)
    return (
        problems
        + _data_problems(f"{name}.data", section["data"])
        + _template_problems(name, section["template"])
    )


def _data_problems(name: str, data: dict) -> list[str]:
    problems = _unknown(f"{name}.", data, DATA)
    problems += [
        f"{key} is not set: give --config.{key}=jsonl:FILE or a data set's name"
        + _to_leave_out(name, key)
        for key in unset_sources(name, data)
    ]
    problems += _length_problems(name, data)
    if not isinstance(data["source"], dict):
        return problems
    parts, weights = data["source"], data.get("weights")
    wrong = {part: part_problem(value) for part, value in parts.items()}
    problems += [f"{name}.source.{part}: {problem}" for part, problem in wrong.items() if problem]
    if not parts:
        problems.append(f"{name}.source is a mixture without parts")
    if data.get("options"):
        problems.append(f"{name}.options: the options of a mixture belong into its parts")
    if weights and weights.keys() != parts.keys():
        problems.append(
            f"{name}.weights are of {', '.join(weights)}; the mixture is of {', '.join(parts)}"
        )
    return problems


def _length_problems(name: str, data: dict) -> list[str]:
    lengths, buckets = data["lengths"], data.get("buckets") or []
    if not isinstance(buckets, list | tuple) or not all(isinstance(b, dict) for b in buckets):
        return [f"{name}.buckets: expected a list of dict(target=, ...), got {buckets!r:.60}"]
    problems = []
    if data.get("pack") and buckets:
        problems.append(f"{name}: packed rows are full; give pack or buckets, not both")
    if data.get("pack") and (lengths.get("prefix") or lengths.get("request")):
        problems.append(
            f"{name}.pack: the template has more texts than a target; only systems that read a row "
            "once can share it between examples"
        )
    rows = [lengths | each for each in buckets]
    for number, (each, following) in enumerate(itertools.pairwise([*rows, lengths])):
        longer = {part: f"{each[part]} > {following.get(part, 0)}" for part in each
                  if each[part] > following.get(part, 0)}  # fmt: skip
        if longer or each == following:
            problems.append(
                f"{name}.buckets[{number}]: a bucket is shorter than the next one and than lengths"
                f"{': ' if longer else ''}{', '.join(f'{p} {how}' for p, how in longer.items())}"
            )
    return problems


def _picture_problems(name: str, data: dict, *, is_trained: bool, features: str) -> list[str]:
    problems = []
    pictures, preparation = data.get("pictures", 1), data.get("preparation", "clip")
    if not isinstance(pictures, int) or pictures < 0:
        problems.append(
            f"{name}.pictures is {pictures!r}, it must be a whole number, at least 0: places for "
            "the pictures of a row"
        )
    problems += _video_problems(name, data, features=features)
    if preparation not in PREPARATIONS:
        problems.append(
            f"{name}.preparation is {preparation!r}, it must be one of {', '.join(PREPARATIONS)}"
        )
    if preparation == "crop" and not is_trained:
        problems.append(
            f"{name}.preparation is 'crop', which is random and for training alone: questions are "
            f"scored on whole pictures; give --config.{name}.preparation=squash, or clip"
        )
    if preparation == "crop" and is_trained and features != "step":
        problems.append(
            f"{name}.preparation is 'crop', which shows another part of a picture each time, so "
            f"that features (now {features!r}) cannot be stored; give --config.features=step, or "
            "squash or clip in place of crop"
        )
    return problems


def _video_problems(name: str, data: dict, *, features: str) -> list[str]:
    problems = []
    pictures, frames = data.get("pictures", 1), data.get("num_frames", 0)
    if not isinstance(frames, int) or frames < 0:
        return [
            f"{name}.num_frames is {frames!r}, it must be a whole number, at least 0: frames that "
            "are shown of each video"
        ]
    if isinstance(pictures, int) and 0 <= pictures < frames:
        problems.append(
            f"{name}.num_frames is {frames}, but rows have places for {pictures} frames and "
            f"pictures; give --config.{name}.pictures={frames}"
        )
    choice = data.get("frame_choice")
    if choice not in (None, *FRAME_CHOICES):
        problems.append(
            f"{name}.frame_choice is {choice!r}, it must be one of {', '.join(FRAME_CHOICES)}"
        )
    if frames and choice == "random" and features != "step":
        problems.append(
            f"{name}.frame_choice is 'random', so that features (now {features!r}) cannot be "
            "stored; give --config.features=step"
        )
    if frames and data.get("preparation") == "crop":
        problems.append(
            f"{name}.preparation is 'crop', but videos are shown whole; give "
            f"--config.{name}.preparation=center"
        )
    return problems


def _to_leave_out(name: str, key: str) -> str:
    part = key.removeprefix(f"{name}.source").strip(".").partition(".")[0]
    return f", or leave it out: --config.{name}.weights.{part}=0" if part else ""


def unset_sources(name: str, data: dict) -> list[str]:
    """Keys of the config that a user has yet to give, of the ``data`` section ``name``."""
    source = data["source"]
    if not isinstance(source, dict):
        return [] if source else [f"{name}.source"]
    return [
        f"{name}.source.{part}.source"
        for part, value in source.items()
        if not part_problem(value) and not value["source"]
    ]


def _template_problems(name: str, template: dict) -> list[str]:
    try:
        from_json(template)
    except ValueError as error:
        return [f"{name}.template: {error}"]
    return []


def _origin_problems(config: dict) -> list[str]:
    """In what the model in ``weights.all`` is another one than the config's: the system, or the
    fields of a stage's template."""
    said = origin.stated(config)
    if said is None:
        return []
    system, templates = said
    if system != config["system"]:
        return [
            f"weights.all: {config['weights']['all']} is a model of the system {system!r}, the "
            f"config is for {config['system']!r}; give one of that, or this one for a part"
        ]
    problems = _lora_problems(config)
    if config["weights"].get("any_template"):
        return problems
    changes = (_template_changes(config, *template) for template in templates.values())
    return problems + [problem for some in changes for problem in some]


def _lora_problems(config: dict) -> list[str]:
    """In what LoRA of the model in ``weights.all``, if it has any, is other than the config's: its
    arrays do not tell how they are scaled."""
    whole, theirs = config["weights"]["all"], origin.stated_lora(config)
    if not theirs:
        return []
    ours = config["model"].get("lora") or {}
    if ours:
        ours = {f.name: f.default for f in dataclasses.fields(LoraConfig)} | ours
    changed = [name for name in ("target", "rank", "alpha") if ours.get(name) != theirs[name]]
    if not changed:
        return []
    told = ", ".join(f"{name}: {theirs[name]!r} there, {ours.get(name)!r} here" for name in changed)
    return [
        f"weights.all: {whole} has LoRA, and the config's is another ({told}); give "
        f"--config.model.lora={ours | {name: theirs[name] for name in changed}!r}, or merge it "
        f"first: python -m conversion merge --checkpoint {whole} --out DIR"
    ]


def _template_changes(config: dict, where: str, template: dict) -> list[str]:
    """In what the stages' templates of the same kind differ from ``template``, of a model that the
    run starts from; nothing if one of them is equal."""
    sections = {name: section["template"] for name, section in data_sections(config).items()}
    kind = template["template"]
    stages = [name for name in config["stages"] if sections[name].get("template") == kind]
    if any(_template_problems(name, sections[name]) for name in stages):
        return []  # those come first
    try:
        theirs = to_json(from_json(template)) if stages else None
    except ValueError as error:
        return [f"weights.all: {where}: {error}"]
    ours = {stage: to_json(from_json(sections[stage])) for stage in stages}
    if theirs in ours.values():
        return []
    problems = []
    for stage, here in ours.items():
        changed = [field for field in here if here[field] != theirs[field]]
        alike = [name for name in sections if sections[name] == sections[stage]]
        flags = [f"--config.{name}.template.{field}=..." for name in alike for field in changed]
        problems.append(
            f"weights.all: {where} has another {kind} template than {', '.join(alike)}:\n    "
            + "\n    ".join(f"{f}: {theirs[f]!r} there, {here[f]!r} here" for f in changed)
            + f"\n    give the same ({' '.join(flags)}), or, if the change is wanted, "
            "--config.weights.any_template=True"
        )
    return problems


def _unknown(prefix: str, section: dict, known) -> list[str]:
    return [
        f"{prefix}{key} is read by nothing; there are {', '.join(known)}"
        for key in section
        if key not in known
    ]


def _without_empty_shares(config: dict) -> dict:
    """Parts of a mixture whose weight is 0 are not opened, nor need they have a source."""
    for name in config["stages"]:
        data = config[name]["data"] if name in config else {}
        parts, weights = data.get("source"), data.get("weights") or {}
        if isinstance(parts, dict) and weights.keys() == parts.keys() and any(weights.values()):
            data["source"] = {part: parts[part] for part in parts if weights[part]}
            data["weights"] = {part: weights[part] for part in parts if weights[part]}
    return config


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(below) for key, below in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
