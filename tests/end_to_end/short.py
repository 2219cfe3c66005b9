"""The default config at a hundredth of its length, as a config file of its own."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACE = ("time", "samples_per_second", "tokens_per_second", "seconds_per_step", "data_wait")


def load_config(name: str):
    """``lmeye.py[:variant]`` from the folder of configs."""
    file, _, variant = name.partition(":")
    spec = importlib.util.spec_from_file_location("config", ROOT / "configs" / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def get_config(variant: str = ""):
    """``saving``: no questions asked, and a checkpoint after every step; its second stage has two
    sources. ``spread``: over all devices, with questions that are no multiple of the batch;
    ``spread-SYSTEM`` the same of another system."""
    if variant.startswith("spread"):
        return spread(variant.partition("-")[2] or "lmeye")
    config = load_config("lmeye.py")
    config.align.steps, config.instruct.steps = 4, 6
    for stage in (config.align, config.instruct):
        stage.update(batch_size=8, log_every=1, save_every=2)
        stage.optimizer.warmup_steps = 1
        stage.eval.batch_size = 32
        stage.eval.data.options = {"limit": 32}
    del config.instruct.data["weights"]
    config.instruct.data.options = {"limit": 400}
    config.align.data.options.limit = 400
    config.test.data.options = {"limit": 32}
    config.test.batch_size = 32
    if variant == "saving":
        config.instruct.steps, config.test = 16, {}
        for stage in (config.align, config.instruct):
            stage.update(save_every=1, log_every=4, eval_at_end=False, eval={})
            stage.data.options.limit = 64
        parts = dict(
            seen=dict(source="easy-vqa", options={"limit": 64}),
            held_out=dict(source="easy-vqa", split="dev", options={"limit": 64}),
        )
        data = config.instruct.data.to_dict() | dict(source=parts)
        config.instruct.data = {k: v for k, v in data.items() if k != "options"}
        config.instruct.data.weights = dict(seen=3.0, held_out=1.0)
    return config


def spread(system: str):
    """The tiny variant of a system over all devices, two steps of its first stages and five of the
    last, which alone asks questions."""
    config = load_config(f"{system}.py")
    config.preset, config.mesh.data, config.mesh.fsdp = "fsdp", 1, -1
    for stage in (config[name] for name in config.stages):
        is_last = stage is config[config.stages[-1]]
        stage.update(
            steps=5 if is_last else 2, batch_size=8, keep_checkpoints=3, eval_at_end=is_last
        )
        stage.update(log_every=1, save_every=2)
        stage.optimizer.update(learning_rate=1e-3, warmup_steps=1)
        shorten(stage.data, 30)
        stage.eval.batch_size = 16
        shorten(stage.eval.data, 21)
    config.test.batch_size = 16
    shorten(config.test.data, 37)
    return config


def shorten(data, count: int) -> None:
    """Leaves about ``count`` records; all alike, where there is one source."""
    parts = data.source.values() if hasattr(data.source, "values") else [data]
    for part in parts:
        options = part.get("options") or {}
        made = part.source.removeprefix("easy-vqa-") in ("multi", "clips", "differences", "lrv")
        part.options = dict(options) | {"num_records" if made else "limit": -(-count // len(parts))}
    if parts == [data] and "weights" in data:
        del data["weights"]


def measured(workdir: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, without its pace."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in PACE} for line in lines]
