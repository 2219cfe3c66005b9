"""Measures what mmjax claims of its speed; prints shapes, precision, device and versions with it.

    python scripts/benchmark.py serve --run runs/lmeye-tiny [--requests 200] [--batch_size 8,1]
    python scripts/benchmark.py convert [--gigabytes 13.5] [--folder DIR] [--bins]
    python scripts/benchmark.py train --config configs/lmeye.py [--stage align] [--json FILE] \\
        [--compare one_pass,two_full_passes] [--count] [--config.instruct.accumulation=1]
    python scripts/benchmark.py data --config configs/lmeye.py [--json FILE]
    python scripts/benchmark.py prefill --config configs/lmeye.py [--rows 1] [--json FILE]
    python scripts/benchmark.py decode --config configs/lmeye.py [--rows 1] [--new 64] [--beams 5]
    python scripts/benchmark.py precision --config configs/lmeye.py [--rows 8] [--json FILE]

serve: starts a server at the loopback address, sends all requests at the same moment, each about
another held-out easy-VQA picture, and says how many were lost, the throughput, and percentiles of
the time to the first word and to the whole answer, for each batch size; the last figure is the
throughput in relation to the first one's.

convert: makes up a checkpoint with the shapes of LLaMA-7B in float16 (narrower for fewer
gigabytes), copies it, imports it, exports it, and says how much memory the two commands took, and
their speed as a part of the copy's. Takes three times the gigabytes in the folder, for a while.

train: the step of a config's stage, with drawn weights and a made-up batch; beside it PyTorch's,
eager and compiled, where the system has a counterpart, and other ways to train LMEye (--compare).

prefill, decode: the first token of an answer and the ones after it, beside transformers' `generate`
of the language model alone, eager and compiled.

precision: how often half precision and float32 find the same token the best, and how far their
logits are apart.

data: the samples that a config's pipeline makes in a second, beside torch's DataLoader, and the
share of a short run that waits for them.
"""

import base64
import functools
import os
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory beside JAX

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from mmjax import command
from mmjax.data.images import read
from mmjax.data.sources import make_source
from mmjax.train.answering import load_model
from mmjax.train.config import check, resolve
from mmjax.train.given import given_config

RUN = flags.DEFINE_string("run", None, "run directory, or imported checkpoint")
REQUESTS = flags.DEFINE_integer("requests", 200, "how many at once", lower_bound=1)
BATCH_SIZE = flags.DEFINE_list("batch_size", "8", "answers made at once; several are compared")
GIGABYTES = flags.DEFINE_float("gigabytes", 13.5, "size of the checkpoint", lower_bound=0.1)
FOLDER = flags.DEFINE_string("folder", None, "where it is made; default: the temporary folder")
BINS = flags.DEFINE_bool("bins", False, "in .bin files in place of safetensors")
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/<system>.py[:variant]", lock_config=False, accept_new_attributes=True
)
STAGE = flags.DEFINE_string("stage", None, "of the config; the last one by default")
JSON = flags.DEFINE_string("json", None, "file to which a line with all figures is added")
COMPARE = flags.DEFINE_list("compare", [], "one_pass, two_full_passes: of LMEye's step")
COUNT = flags.DEFINE_bool("count", False, "only count the operations of a step, of any size")
ROUNDS = flags.DEFINE_integer("rounds", 10, "turns of each contestant", lower_bound=3)
WORKERS = flags.DEFINE_list("workers", "1,2,4", "data: threads, processes that read")
STEPS = flags.DEFINE_integer("steps", 100, "of the run that waits for data", lower_bound=0)
ROWS = flags.DEFINE_integer("rows", 1, "prompts that are answered at once", lower_bound=1)
NEW = flags.DEFINE_integer("new", 64, "tokens of an answer", lower_bound=2)
BEAMS = flags.DEFINE_integer("beams", 1, "of a beam search; 1 = greedy", lower_bound=1)
COMPILE = flags.DEFINE_bool("compile", True, "whether torch.compile takes part")
TOKENS = flags.DEFINE_integer("max_tokens", 8, "tokens of an answer at most", lower_bound=1)


def serve() -> None:
    if RUN.value is None:
        raise ValueError("which model is to be asked? --run DIR")
    import uvicorn

    from mmjax.serve.api import Api
    from mmjax.serve.limits import Limits
    from mmjax.serve.load import ask_at_once, report
    from mmjax.serve.server import engines_of

    model = load_model(Path(RUN.value))
    limits = Limits(tokens=TOKENS.value, waiting=REQUESTS.value + 1, seconds=600)
    bodies = _questions(REQUESTS.value)
    print(
        f"{RUN.value}, {model.run.config['frozen_dtype']}, pictures of {model.image_size} pixels, "
        f"{TOKENS.value} tokens at most; {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    rates = []
    for size in map(int, BATCH_SIZE.value):
        with engines_of({"model": model}, limits, batch_size=size) as engines:
            api = Api(engines, limits, histories={"model": model.template.takes_history})
            server = uvicorn.Server(uvicorn.Config(api.app(), port=0, log_level="warning"))
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            while not server.started:
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            address = f"http://127.0.0.1:{port}"
            ask_at_once(address, bodies)  # compiles a program for each length of questions
            heard, seconds = ask_at_once(address, bodies)
            server.should_exit = True
            thread.join()
        rates.append(len(heard) / seconds)
        print(f"\nbatches of {size}: {report(heard, seconds)}")
    if len(rates) > 1:
        ratios = ", ".join(f"{rate / rates[0]:.2f}" for rate in rates)
        print(f"\nthroughput in relation to batches of {BATCH_SIZE.value[0]}: {ratios}")


def convert() -> None:
    from conversion.full_size import measure

    with tempfile.TemporaryDirectory(dir=FOLDER.value, prefix="convert-") as folder:
        if not measure(Path(folder) / "files", GIGABYTES.value, bins=BINS.value):
            raise ValueError("memory went over the bound, or what was exported differs")


def train() -> None:
    from mmjax.benchmark.train import measure

    config, _ = check(_given())  # weights and data may be missing
    asked = dict(stage=STAGE.value, compare=tuple(COMPARE.value))
    if COUNT.value:
        from mmjax.benchmark.operations import count

        return count(config, **asked)
    measure(config, **asked, rounds=ROUNDS.value, file=JSON.value)


def data() -> None:
    from mmjax.benchmark.data import measure

    asked = dict(stage=STAGE.value, workers=tuple(map(int, WORKERS.value)), rounds=ROUNDS.value)
    measure(resolve(_given()), **asked, steps=STEPS.value, file=JSON.value)


def answers(kind: str) -> None:
    from mmjax.benchmark.decode import measure

    config, _ = check(_given())  # weights and data may be missing
    asked = dict(stage=STAGE.value, rows=ROWS.value, tokens=NEW.value, beams=BEAMS.value)
    measure(kind, config, **asked, compiles=COMPILE.value, rounds=ROUNDS.value, file=JSON.value)


def precision() -> None:
    from mmjax.benchmark.precision import measure

    config, _ = check(_given())  # data may be missing
    measure(config, stage=STAGE.value, rows=ROWS.value, file=JSON.value)


def _given() -> ConfigDict:
    if CONFIG.value is None:
        raise ValueError("what is to be measured? --config configs/<system>.py[:variant]")
    return given_config(CONFIG)


def _questions(count: int) -> list[dict]:
    """Requests about held-out pictures, from all over them."""
    source = make_source("easy-vqa", "test")
    bodies = []
    for number in range(count):
        example = source[number * len(source) // count]
        (media,) = example.media
        data = base64.b64encode(read(media.data, media.key)).decode()
        url = f"data:image/png;base64,{data}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": example.info["question"]},
        ]
        bodies.append({"messages": [{"role": "user", "content": content}], "temperature": 0})
    return bodies


def main(argv: list[str]) -> None:
    kinds = {"serve": serve, "convert": convert, "train": train, "data": data}
    kinds["precision"] = precision
    kinds |= {kind: functools.partial(answers, kind) for kind in ("prefill", "decode")}
    if len(argv) != 2 or argv[1] not in kinds:
        raise ValueError(f"what is to be measured? one of {', '.join(kinds)}")
    kinds[argv[1]]()


if __name__ == "__main__":
    command.run(main)
