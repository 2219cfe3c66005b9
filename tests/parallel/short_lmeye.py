"""configs/lmeye.py with a few steps, spread over all devices: for runs in several processes.

The questions are no multiple of the batch, and the pictures' features are stored.
"""

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[2] / "configs" / "lmeye.py"


def get_config():
    spec = importlib.util.spec_from_file_location("lmeye", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.preset, config.mesh.data, config.mesh.fsdp = "fsdp", 1, -1
    config.align.steps, config.instruct.steps = 2, 5
    for stage in (config.align, config.instruct):
        stage.update(batch_size=8, log_every=1, save_every=2, keep_checkpoints=3)
        stage.optimizer.warmup_steps = 1
        stage.optimizer.learning_rate = 1e-3
    config.align.eval_at_end = False
    config.align.data.options.limit = 30
    config.instruct.eval.update(batch_size=16)
    config.instruct.eval.data.options = {"limit": 21}
    del config.instruct.data["weights"]
    config.instruct.data.options = {"limit": 30}
    config.test.data.options = {"limit": 37}
    config.test.batch_size = 16
    return config
