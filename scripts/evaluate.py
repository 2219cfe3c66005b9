"""Asks a trained run the held-out questions and prints the accuracy by kind of question.

python scripts/evaluate.py --run runs/lmeye-tiny [--stage align] [--without_picture]

Answers are greedy, as in training, unless flags of decoding say otherwise: --num_beams=5 ...

Or has answers judged, as GAVIE does:

python scripts/evaluate.py gavie --evaluation_set evaluation_set.json --images image \\
    --questions questions.jsonl                                  (for scripts/generate.py --jsonl)
python scripts/evaluate.py gavie --evaluation_set evaluation_set.json \\
    --answers ours=ours.jsonl --answers other=other.jsonl --annotations vg_annotation.json \\
    --judge "chat-api?base_url=https://HOST/v1&model=NAME" --out judged

The judge may be recorded?path=FILE or rules, too (mmjax/evaluate/judge.py); the same command goes
on after a stop and asks nothing twice. Its exit code is 1 if nothing could be judged.

Or scores captions (BLEU, ROUGE-L, CIDEr-D) that scripts/generate.py --jsonl has written:

python scripts/evaluate.py captions --answers captions.jsonl --references captions_val2014.json
"""

import sys
from pathlib import Path

import jax
from absl import flags

from mmjax import command
from mmjax.data.sources.mixture import named
from mmjax.evaluate.captions import captions_from_flags, define_captions
from mmjax.evaluate.gavie_flags import define_gavie, gavie_from_flags
from mmjax.generate.flags import decoding, define_decoding
from mmjax.parallel.distributed import initialize
from mmjax.train.build import load_run
from mmjax.train.evaluation import evaluate, greedy, question_section
from mmjax.train.features import picture_features
from mmjax.train.report import accuracy_tables

RUN = flags.DEFINE_string("run", None, "run directory")
STAGE = flags.DEFINE_string("stage", None, "evaluate as of this stage; the last one by default")
WITHOUT_PICTURE = flags.DEFINE_bool(
    "without_picture", False, "withhold the picture: what can be guessed"
)
define_decoding()
define_gavie()
define_captions()


def main(argv: list[str]) -> None:
    if argv[1:] == ["gavie"]:
        summary = gavie_from_flags()
        print(summary)
        sys.exit(0 if isinstance(summary, str) or summary.counts["judged"] else 1)
    if argv[1:] == ["captions"]:
        print(captions_from_flags())
        return
    if argv[1:] or RUN.value is None:
        given = argv[1:] or "none"
        raise ValueError(f"say what to do: --run=DIR, gavie, or captions; got {given}")
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
