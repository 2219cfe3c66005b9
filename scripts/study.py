"""What does the interaction bring? Trains a system and its control on several seeds, and prints one
table.

python scripts/study.py [--seeds 0,1,2] [--workdir runs/study]

withheld      the trained model, given zeros in place of the picture: a guard against leaks
stage 1 only  the aligned model, asked without the interaction
static        the control: same parameters, data and steps, but the request does not see the
              question, so that the responses are static image tokens
interaction   the paper's
"""

import copy
import json
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from mmjax import command
from mmjax.evaluate.accuracy import Accuracy, compare
from mmjax.train.build import load_run
from mmjax.train.config import resolve
from mmjax.train.evaluation import evaluate, question_section
from mmjax.train.features import picture_features
from mmjax.train.loop import train

CONFIG = config_flags.DEFINE_config_file("config", "configs/lmeye.py")
CONTROL = config_flags.DEFINE_config_file("control", "configs/lmeye.py:tiny-blind")
SEEDS = flags.DEFINE_list("seeds", "0,1,2", "seeds of both trainings")
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/study", "where the runs go; finished ones are not repeated"
)


def main(_) -> None:
    rows: dict[str, list[Accuracy]] = {
        "withheld": [],
        "stage 1 only": [],
        "static": [],
        "interaction": [],
    }
    for seed in SEEDS.value:
        for name, config in (("interaction", CONFIG.value), ("static", CONTROL.value)):
            plain = copy.deepcopy(resolve(config)) | {"seed": int(seed)}
            workdir = Path(WORKDIR.value) / f"{name}-seed{seed}"
            train(plain, workdir)
            rows[name].append(test(workdir))
            if name == "interaction":
                rows["withheld"].append(test(workdir, without_picture=True))
                rows["stage 1 only"].append(test(workdir, stage=plain["stages"][0]))
    print("\n" + compare(rows))
    record = {name: [each.kinds for each in accuracies] for name, accuracies in rows.items()}
    Path(WORKDIR.value, "study.json").write_text(json.dumps(record, indent=2) + "\n")


def test(workdir: Path, stage: str | None = None, *, without_picture: bool = False) -> Accuracy:
    run, stage = load_run(workdir, stage)
    with jax.set_mesh(run.mesh):
        features = picture_features(run, workdir)
        section = question_section(run.config, stage)
        return evaluate(run, run.params, section, features, without_picture=without_picture)[0]


if __name__ == "__main__":
    command.run(main)
