"""Compiles a run's programs for TPUs or GPUs that need not be here, and says what they will need
there.

    pip install 'mmjax[aot]'        # for TPUs; 'mmjax[cuda12]' for GPUs
    python scripts/compile.py --config configs/lynx.py:7b-420 --topology v5e:4x4
    python scripts/compile.py --config configs/lmeye.py:vicuna-7b --topology v5p:2x2x2 \\
        --programs step,prefill,decode --config.mesh.fsdp=8
    python scripts/compile.py --config configs/lmeye.py:vicuna-7b --topology h200:1

Weights and data need not be here either. Where a program does not fit, other settings are compiled
until one does, and that is said; the exit code is 1. The table in docs/scale.md, in an hour of one
core (started again, it goes on):

    python scripts/compile.py --every --json compiled.jsonl [--topology h200:1]
"""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # there may be no driver
# Kernels cannot be tried out where their GPU is not.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"

from absl import flags
from ml_collections import config_flags

from mmjax import command
from mmjax.parallel.chips import chip_of, devices_of
from mmjax.train.ahead import PROGRAMS, compiled
from mmjax.train.ahead_report import facts, overview, page, suggestion
from mmjax.train.config import check
from mmjax.train.given import given_config

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/<system>.py[:variant]", lock_config=False, accept_new_attributes=True
)
TOPOLOGY = flags.DEFINE_string("topology", None, "v5e:4x4, v5p:2x2x2, h200:8, a100:1, ...")
STAGE = flags.DEFINE_string("stage", None, "of the config; the last one by default")
WANTED = flags.DEFINE_list("programs", "tower,step", f"of {', '.join(PROGRAMS)}")
ROWS = flags.DEFINE_integer("rows", 16, "questions that are answered at once", lower_bound=1)
TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "of an answer", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "file to which a line with all figures is added")
EVERY = flags.DEFINE_bool("every", False, "all systems at 7B, on --topology or two slices")

SLICES = ("v5e:4x4", "v5p:2x2x2")
# Config -> the slices that a batch is read in, and its rows where a multiple of 16 is needed.
SYSTEMS = {
    "lmeye.py:vicuna-7b": {"instruct.accumulation": 1},
    "lmeye_blip2.py:blip2-flan-t5-xl": {"instruct.accumulation": 2},
    "visual_llama.py:7b": {"instruct.accumulation": 8},
    "minigpt4.py:vicuna-7b": {"instruct.batch_size": 16},
    "mplug_owl.py:lrv-v2": {},
    "cheetor.py:vicuna-7b": {"vpgc.batch_size": 96, "vpgc.accumulation": 6},
    "lynx.py:7b-420": {},
}


def every(file: Path) -> None:
    """Compiles what ``file`` does not have yet, and prints a table of all of it."""
    configs = Path(__file__).parents[1] / "configs"
    read = lambda: [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []  # noqa: E731
    for topology in [TOPOLOGY.value] if TOPOLOGY.value else SLICES:
        for name, changes in SYSTEMS.items():
            if (name, topology) in {(line["config"], line["topology"]) for line in read()}:
                continue
            asked = [f"--config={configs / name}", f"--topology={topology}", f"--json={file}"]
            asked += [f"--config.{key}={value}" for key, value in changes.items()]
            subprocess.run([sys.executable, __file__, *asked], check=False)
    print(overview(read()))


def main(_) -> None:
    if EVERY.value and JSON.value:
        return every(Path(JSON.value))
    if missing := [f"--{name}" for name in ("config", "topology") if not flags.FLAGS[name].value]:
        raise ValueError(f"{' and '.join(missing)} must be given; or --every and --json=FILE")
    config, _ = check(given_config(CONFIG))  # its weights and data may be missing
    chip, devices = chip_of(TOPOLOGY.value), devices_of(TOPOLOGY.value)
    stage = STAGE.value or config["stages"][-1]
    asked = dict(names=tuple(WANTED.value), rows=ROWS.value, max_new_tokens=TOKENS.value)
    asked["memory"] = chip.memory
    print(f"{config['system']} {config['variant']}, stage {stage}, on {TOPOLOGY.value}", flush=True)
    made, problem = compiled(config, stage, devices, **asked)
    print(page(made, chip))
    if JSON.value:
        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).name
        line = facts(name, config, stage, TOPOLOGY.value, made, problem)
        with Path(JSON.value).open("a") as file:
            file.write(json.dumps(line) + "\n")
    if problem:
        print(f"\nIt does not fit: {problem}", flush=True)
        sys.exit(suggestion(config, stage, devices, **asked))


if __name__ == "__main__":
    command.run(main)
