"""What is particular to Visual-LLaMA: rows without a picture, which rows of the vocabulary train,
and its recipes at full size."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import tiny
from end_to_end.short import load_config

from mmjax.data.batch import Batch
from mmjax.data.segments import Encoded, Segment
from mmjax.data.sequence import Lengths, assemble
from mmjax.nn.param import merge, specs
from mmjax.parallel.mesh import make_abstract_mesh, make_mesh
from mmjax.parallel.sharding import PRESETS, put_rows, resolve
from mmjax.systems.registry import make_system
from mmjax.systems.system import config_to_dict
from mmjax.systems.visual_llama import ConnectorConfig, VisualLlama, VisualLlamaConfig
from mmjax.train import build
from mmjax.train.config import check
from mmjax.train.optim import OptimizerConfig
from mmjax.train.step import jit_step, make_step

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = VisualLlamaConfig(
    tiny.llama_config(added_rows=4, added_logits=True),
    tiny.clip_config().vision,
    projection_dim=10,
    connector=ConnectorConfig(num_tokens=3),
)
SYSTEM = VisualLlama(CONFIG)
EOI = 25


def batch(*, frames: bool = True) -> Batch:
    """A picture and a text of an id that was added; a text alone."""
    slots = [Segment((tiny.PAD,), slot=("media", i)) for i in range(3)]
    rows = [
        Encoded([Segment((1,)), *slots, Segment((EOI, 5)), Segment((7, 2), is_target=True)]),
        Encoded([Segment((1, 6, 8)), Segment((9, 2), is_target=True)]),
    ]
    made = Batch(np.array([3, 4]), assemble(rows, Lengths(target=10), tiny.PAD)[2])
    if not frames:
        return made
    shown = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8, 3), np.uint8)
    return dataclasses.replace(made, frames=shown)


def test_a_text_alone_does_not_see_what_stands_in_its_pictures_place():
    params = tiny.random_params(specs(SYSTEM))
    read = jax.jit(lambda b: (m := merge(SYSTEM, params)).logits(m.hidden(b).states))
    first = batch()
    other = dataclasses.replace(first, frames=255 - first.frames)
    logits, changed = read(first), read(other)
    assert np.abs(logits[0, 4] - changed[0, 4]).max() > 1e-2
    np.testing.assert_array_equal(logits[1], changed[1])
    alone = jax.tree.map(lambda x: x[1:], batch(frames=False))
    alone = dataclasses.replace(alone, target=dataclasses.replace(alone.target, slots={}))
    np.testing.assert_allclose(read(alone)[0], logits[1], atol=2e-5)
    assert logits.shape == (2, 10, 28)


def test_of_all_words_only_those_shown_of_the_new_change():
    """The rest is another leaf; rows of new words that are not shown have no gradient, and the
    decay is kept from them."""
    mesh = make_mesh(devices=jax.devices()[:1])
    frozen = r"clip\..*|language\.(?!embedding\.added).*"
    added = r"language\.embedding\.added"
    before = tiny.random_params(specs(SYSTEM))[added.replace("\\", "")]
    settings = OptimizerConfig(
        learning_rate=0.01, schedule="constant", weight_decay=0.2, decay_exclude=added
    )
    with jax.set_mesh(mesh):
        state, kept, optimizer = tiny.start(SYSTEM, mesh, "dp", frozen, settings)
        step = jit_step(make_step(SYSTEM, optimizer, seed=0), state, kept, mesh)
        state, _ = step(state, kept, put_rows(batch(), mesh))
    after = np.asarray(state.trainable["language.embedding.added"])
    assert "language.embedding.table" in kept
    changed = np.abs(after - before).max(axis=1) > 1e-4
    assert changed.tolist() == [row == EOI - 24 for row in range(4)]
    np.testing.assert_array_equal(after[[0, 2, 3]], before[[0, 2, 3]])


def test_published_sizes():
    """Visual-LLaMA reference, sections 1.2, 2 and 7."""
    config = config_to_dict(VisualLlamaConfig.named("7b"))
    sizes = {}
    for kind in ("mlp", "transformer"):
        config["connector"]["kind"] = kind
        wanted = specs(make_system("visual_llama", config))
        size = lambda prefix, of=wanted: sum(  # noqa: E731
            spec.size for path, spec in of.items() if path.startswith(prefix)
        )
        sizes[kind] = size("connector.")
        assert size("language.") == 6_738_415_616 + 2 * 4 * 4096
        for preset in PRESETS:
            resolve(wanted, make_abstract_mesh(8, 1, 4, 2), preset)
    assert sizes == dict(mlp=854_650_880, transformer=1_105_543_168)


@pytest.mark.parametrize("variant", ["7b", "13b-transformer"])
def test_the_readmes_recipes(variant):
    config = load_config(f"visual_llama.py:{variant}")
    problems = check(config)[1]
    assert all("not set" in each or "leave it out" in each for each in problems), problems
    plain = config.to_dict()
    wanted = specs(make_system("visual_llama", plain["model"]))
    trained = {
        stage: build.stage_selection(plain, stage, wanted).trainable for stage in plain["stages"]
    }
    rows = {"language.embedding.added"}
    assert rows < set(trained["align"])
    assert all(path.startswith("connector.") for path in set(trained["align"]) - rows)
    low = set(trained["instruct"]) - rows
    assert len(low) == 4 and all(".lora_" in path for path in low)
    if variant == "7b":
        assert sum(math.prod(wanted[path].shape) for path in low) == 4_194_304
    assert plain["align"]["batch_size"] // plain["align"]["accumulation"] == 8


def test_tiny_runs_differ_in_texts_alone():
    tiny_, control = (load_config(f"visual_llama.py:{name}") for name in ("tiny", "tiny-pictures"))
    assert not check(tiny_)[1] and not check(control)[1]
    assert tiny_.instruct.data.weights.told == 0.2 and "told" not in control.instruct.data.weights
    for config in (tiny_, control):
        del config.instruct.data["weights"], config.instruct.data["options"], config["variant"]
    assert tiny_ == control


def test_parts_that_do_not_go_together():
    with pytest.raises(ValueError, match="3 heads, which do not divide 16"):
        changed = ConnectorConfig(kind="transformer", num_heads=3)
        dataclasses.replace(CONFIG, connector=changed)
    with pytest.raises(ValueError, match="half as wide as 3 vectors of 15"):
        language = dataclasses.replace(CONFIG.language, embed_dim=15)
        dataclasses.replace(CONFIG, language=language)
    with pytest.raises(ValueError, match="num_tokens is 0.*") as error:
        ConnectorConfig(num_tokens=0, kind="linear")
    assert "kind is 'linear'" in str(error.value)
    with pytest.raises(ValueError, match="there must be rows, and a head of its own"):
        tiny.llama_config(added_rows=2, added_logits=True, tied_head=True)
    with pytest.raises(ValueError, match="no variant '30b'; there are tiny, 7b, 13b"):
        VisualLlamaConfig.named("30b")
    with pytest.raises(ValueError, match="there is no variant 'tiny-transformer'"):
        load_config("visual_llama.py:tiny-transformer")
