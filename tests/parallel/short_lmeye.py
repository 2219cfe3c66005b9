"""LMEye at its smallest, on a few pictures: for runs in several processes, which should be quick.

The questions are no multiple of the batch, the pictures' features are stored, one module is
imported, everything else created.
"""

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[2] / "configs" / "lmeye.py"


def get_config():
    spec = importlib.util.spec_from_file_location("lmeye", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    del config.weights["clip"]
    config.model.clip.vision.update(image_size=16, num_layers=1, embed_dim=16, mlp_dim=32, num_heads=2)
    config.model.clip.text.update(num_layers=1, embed_dim=16, mlp_dim=32, num_heads=2)
    config.model.clip.projection_dim = 16
    config.align.steps, config.instruct.steps = 2, 4
    for stage in (config.align, config.instruct):
        stage.update(batch_size=8, log_every=1, save_every=2, keep_checkpoints=3)
        stage.optimizer.warmup_steps = 1
        stage.data.image_size = 16
        stage.eval.update(batch_size=16)
        stage.eval.data.update(image_size=16, options={"limit": 21})
    config.align.eval_at_end = False
    config.align.data.options.limit = 30
    del config.instruct.data["weights"]
    config.instruct.data.options = {"limit": 30}
    config.test.data.update(image_size=16, options={"limit": 37})
    config.test.batch_size = 16
    return config
