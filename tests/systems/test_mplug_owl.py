"""What is particular to mPLUG-Owl: any number of pictures in a row, none as well, and where its
dropout falls."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from end_to_end.short import load_config

from mmjax.data.batch import Batch, stack_padded
from mmjax.data.segments import Encoded, Segment
from mmjax.data.sequence import Lengths, assemble
from mmjax.models.abstractor import AbstractorConfig
from mmjax.nn.param import merge, specs
from mmjax.parallel.mesh import make_abstract_mesh
from mmjax.parallel.sharding import PRESETS, resolve
from mmjax.systems.mplug_owl import MplugOwl, MplugOwlConfig
from mmjax.systems.registry import make_system
from mmjax.train.build import stage_selection
from mmjax.train.config import check

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = MplugOwlConfig(
    tiny.llama_config(),
    tiny.clip_config().vision,
    AbstractorConfig(
        embed_dim=8, out_dim=16, mlp_dim=12, num_queries=2, num_layers=2, num_heads=2, dropout=0.4
    ),
)
SYSTEM = MplugOwl(CONFIG)
PARAMS = tiny.random_params(specs(SYSTEM))
FRAMES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
# Rows: none; one; two that touch, before any text; three, the last at the end. The last row has
# nothing to predict.
PICTURES = [[], [0], [1, 2], [3, 4, 5]]
TEXTS = [[[5, 6, 7]], [[5], [8, 9]], [[], [], [4]], [[6], [7], [8], []]]


def batch(rows: list[int], places: int = 3) -> Batch:
    q, encoded = CONFIG.tokens_per_picture, []
    for row in rows:
        first, *others = TEXTS[row]
        segments = [Segment((1, *first))]
        for number, text in enumerate(others):
            slots = range(number * q, (number + 1) * q)
            segments += [Segment((0,), slot=("media", slot)) for slot in slots]
            segments += [Segment(tuple(text))] if text else []
        if row != 3:
            segments.append(Segment((9, 2), is_target=True))
        encoded.append(Encoded(segments))
    target = assemble(encoded, Lengths(target=16), tiny.PAD)[2]
    given = Batch(np.array(rows), target)
    if not places:
        return given
    frames = [FRAMES[PICTURES[row]] for row in rows]
    return dataclasses.replace(given, frames=stack_padded(frames, places))


@jax.jit
def read(given: Batch, key=None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(logits, sum of losses, their number)."""
    model = merge(SYSTEM, PARAMS)
    output = model.hidden(given, dropout_key=key)
    return model.logits(output.states), *model.loss(given, dropout_key=key)[:2]


def test_rows_of_no_to_three_pictures_are_as_if_alone():
    together, loss, count = read(batch([0, 1, 2, 3]))
    assert np.isfinite(loss) and count == 6, "the last row has nothing to predict"
    losses = []
    for row, places in enumerate((0, 1, 2, 3)):
        alone, one, number = read(batch([row], places))
        length = int(batch([row]).target.segments.sum())
        np.testing.assert_allclose(together[row, :length], alone[0, :length], atol=2e-5)
        losses.append(float(one))
        assert number == (0 if row == 3 else 2)
    assert losses[3] == 0
    np.testing.assert_allclose(loss, sum(losses), rtol=1e-5)


def test_pictures_that_touch_are_told_apart():
    given = batch([2, 2, 2, 2])
    frames = np.array(given.frames)
    frames[1, :2] = frames[1, 1::-1]
    logits, *_ = read(dataclasses.replace(given, frames=frames))
    assert np.abs(logits[0, 8] - logits[1, 8]).max() > 1e-3
    np.testing.assert_allclose(logits[0], logits[2], atol=1e-5)


def test_dropout_of_the_abstractor_is_the_rows_own():
    key, order = jax.random.key(0), [3, 1, 0, 2]
    dropped, plain = read(batch([0, 1, 2, 3]), key)[0], read(batch([0, 1, 2, 3]))[0]
    np.testing.assert_allclose(dropped[0], plain[0], atol=1e-5)  # it has no picture
    for row in (1, 2, 3):
        assert np.abs(dropped[row] - plain[row]).max() > 1e-2
    moved = read(batch(order), key)[0]
    np.testing.assert_allclose(moved, np.asarray(dropped)[order], atol=2e-5)
    assert np.abs(read(batch(order), jax.random.key(1))[0] - moved).max() > 1e-2


def test_published_size():
    """mPLUG-Owl reference, section 1."""
    wanted = specs(MplugOwl(MplugOwlConfig.named("llama-7b")))
    size = lambda prefix: sum(s.size for p, s in wanted.items() if p.startswith(prefix))  # noqa: E731
    assert size("vision.") == 303_179_776
    assert size("abstractor.") == 81_408_000 + 65_536
    assert size("language.") == 6_738_415_616
    for preset in PRESETS:
        resolve(wanted, make_abstract_mesh(8, 1, 4, 2), preset)


@pytest.mark.parametrize(
    ("variant", "count"),
    [("llama-7b", 4_194_304), ("lrv-v2", 4_194_304), ("llama-7b-full", 6_738_415_616)],
)
def test_what_the_public_recipes_train(variant, count):
    config = load_config(f"mplug_owl.py:{variant}")
    plain, problems = check(config)
    assert len(problems) == 4, "what a user has to give: weights, tokenizer, data"
    wanted = specs(make_system("mplug_owl", plain["model"]))
    trained = stage_selection(plain, "instruct", wanted).trainable
    assert sum(wanted[path].size for path in trained) == count


def test_parts_that_do_not_go_together_are_told_at_once():
    abstractor = dataclasses.replace(CONFIG.abstractor, embed_dim=12, out_dim=24)
    with pytest.raises(ValueError, match="embed_dim is 12, the tower's states are 8") as error:
        dataclasses.replace(CONFIG, abstractor=abstractor)
    assert "out_dim is 24, the language model's vectors are 16" in str(error.value)
    with pytest.raises(ValueError, match="no variant 'llama-13b'; there are tiny, llama-7b"):
        MplugOwlConfig.named("llama-13b")
