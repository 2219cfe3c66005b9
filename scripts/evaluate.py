"""Asks a trained run the held-out questions and prints the accuracy by kind of question.

python scripts/evaluate.py --run runs/lmeye-tiny [--stage align] [--without_picture]

Answers are greedy, as in training, unless flags of decoding say otherwise: --num_beams=5 ...

Or scores captions (BLEU, ROUGE-L, CIDEr-D) that scripts/generate.py --jsonl has written:

python scripts/evaluate.py captions --answers captions.jsonl --references captions_val2014.json
"""

from pathlib import Path

import jax
from absl import flags

from mmjax import command
from mmjax.data.sources.mixture import named
from mmjax.evaluate.captions import captions_from_flags, define_captions
from mmjax.generate.flags import decoding, define_decoding
from mmjax.parallel.distributed import initialize
from mmjax.train.build import load_run
from mmjax.train.evaluation import evaluate, greedy, question_section
from mmjax.train.features import picture_features
from mmjax.train.report import accuracy_table

RUN = flags.DEFINE_string("run", None, "run directory")
STAGE = flags.DEFINE_string("stage", None, "evaluate as of this stage; the last one by default")
WITHOUT_PICTURE = flags.DEFINE_bool(
    "without_picture", False, "withhold the picture: what can be guessed"
)
define_decoding()
define_captions()


def main(argv: list[str]) -> None:
    if argv[1:] == ["captions"]:
        print(captions_from_flags())
        return
    if argv[1:] or RUN.value is None:
        raise ValueError(f"say what to do: --run=DIR, or captions; got {argv[1:] or 'neither'}")
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
    print(accuracy_table(accuracy.kinds))


if __name__ == "__main__":
    command.run(main)
