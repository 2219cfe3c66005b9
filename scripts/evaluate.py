"""Asks a trained run the held-out questions and prints the accuracy by kind of question.

python scripts/evaluate.py --run runs/lmeye-tiny [--stage align] [--without_picture]

Answers are greedy, as in training, unless flags of decoding say otherwise: --num_beams=5 ...
"""

from pathlib import Path

import jax
from absl import flags

from mmjax import command
from mmjax.data.sources.mixture import named
from mmjax.generate.flags import decoding, define_decoding
from mmjax.parallel.distributed import initialize
from mmjax.train.build import load_run
from mmjax.train.evaluation import evaluate, greedy, question_section
from mmjax.train.features import picture_features
from mmjax.train.report import accuracy_tables

RUN = flags.DEFINE_string("run", None, "run directory", required=True)
STAGE = flags.DEFINE_string("stage", None, "evaluate as of this stage; the last one by default")
WITHOUT_PICTURE = flags.DEFINE_bool(
    "without_picture", False, "withhold the picture: what can be guessed"
)
define_decoding()


def main(_) -> None:
    initialize()
    workdir = Path(RUN.value)
    run, stage = load_run(workdir, STAGE.value)
    section = question_section(run.config, stage)
    with jax.set_mesh(run.mesh):
        features = picture_features(run, workdir)
        accuracy, _, _ = evaluate(
            run,
            run.params,
            section,
            features,
            without_picture=WITHOUT_PICTURE.value,
            decoding=decoding(base=greedy(section)),
        )
    data = section["data"]
    print(f"{workdir} after stage {stage}, {named(data['source'])} {data['split']}\n")
    print(accuracy_tables(accuracy))


if __name__ == "__main__":
    command.run(main)
