"""Trains what a config describes; started again with the same arguments, it goes on where it
stopped.

python scripts/train.py --config configs/lmeye.py[:variant] [--workdir runs/x]
[--config.instruct.steps=100 ...]
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mmjax import command
from mmjax.parallel.distributed import initialize
from mmjax.train.config import resolve
from mmjax.train.loop import train

CONFIG = config_flags.DEFINE_config_file("config", None, "configs/<system>.py[:variant]")
WORKDIR = flags.DEFINE_string("workdir", None, "run directory; runs/<system>-<variant> by default")
flags.mark_flag_as_required("config")


def main(_) -> None:
    config = resolve(CONFIG.value)
    initialize()
    train(config, Path(WORKDIR.value or f"runs/{config['system']}-{config['variant']}"))


if __name__ == "__main__":
    command.run(main)
