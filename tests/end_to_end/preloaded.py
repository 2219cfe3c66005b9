"""What scripts/train.py needs of other packages, for processes that are to start quickly: imported
and read, but not a device asked for."""

import ml_collections.config_flags  # noqa: F401
import orbax.checkpoint  # noqa: F401

import mmjax.command
import mmjax.train.loop
import mmjax.train.plan  # noqa: F401
from conversion.weights import locate
from mmjax.data.sources import make_source
from mmjax.data.tokenizer import Tokenizer

Tokenizer.load(locate("asset:tiny/llama"))  # transformers imports most of itself, and torch, here
for task in ("question", "caption"):
    make_source("easy-vqa", "train", task=task)
