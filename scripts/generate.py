"""A question about a picture, answered by a trained run or an imported checkpoint.

python scripts/generate.py --run runs/lmeye-tiny --image picture.png --question "what shape is
this?"
"""

from pathlib import Path

import jax
from absl import flags

from mmjax import command
from mmjax.data.templates import from_json
from mmjax.generate.ask import ask
from mmjax.parallel.distributed import initialize
from mmjax.train.build import load_run
from mmjax.train.evaluation import question_section

RUN = flags.DEFINE_string("run", None, "run directory, or imported checkpoint", required=True)
STAGE = flags.DEFINE_string("stage", None, "the model as of this stage; the last one by default")
IMAGE = flags.DEFINE_string("image", None, "picture: JPEG, PNG, WebP, BMP or GIF", required=True)
QUESTION = flags.DEFINE_string("question", None, "what to ask", required=True)
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 64, "tokens of the answer at most", lower_bound=1
)


def main(_) -> None:
    initialize()
    run, stage = load_run(Path(RUN.value), STAGE.value)
    with jax.set_mesh(run.mesh):
        section = question_section(run.config, stage)
        answer = ask(
            run.system,
            run.params,
            run.tokenizer,
            from_json(section["template"]),
            image=Path(IMAGE.value),
            question=QUESTION.value,
            image_size=section["data"]["image_size"],
            max_new_tokens=MAX_NEW_TOKENS.value,
            mesh=run.mesh,
        )
    print(answer)


if __name__ == "__main__":
    command.run(main)
