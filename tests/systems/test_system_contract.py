"""What generation, training, sharding and conversion rely on, asked of every system.

A system joins with one line in `CASES`.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh

from conversion.export import export_checkpoint
from conversion.store import load_imported, save_imported
from conversion.transfer import import_checkpoint
from mmjax.data.batch import Batch
from mmjax.data.sequence import Lengths, assemble, assemble_packed
from mmjax.data.templates import Encoded, Segment
from mmjax.generate.config import GenerationConfig
from mmjax.generate.generator import Generator
from mmjax.models.abstractor import AbstractorConfig
from mmjax.models.clip import ClipVisionConfig
from mmjax.models.eva_vit import EvaVitConfig
from mmjax.models.resampler import ResamplerConfig
from mmjax.nn.apart import is_apart, take_apart
from mmjax.nn.param import merge, specs
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.sharding import put_rows, resolve
from mmjax.systems.cheetor import CheetorConfig
from mmjax.systems.foundation import LanguageModelConfig
from mmjax.systems.lmeye import LMEyeConfig
from mmjax.systems.lynx import LynxConfig
from mmjax.systems.minigpt4 import MiniGPT4Config
from mmjax.systems.mplug_owl import MplugOwlConfig
from mmjax.systems.registry import SYSTEMS, make_system
from mmjax.systems.system import System, config_to_dict
from mmjax.systems.visual_llama import ConnectorConfig, VisualLlamaConfig
from mmjax.train.optim import OptimizerConfig
from mmjax.train.step import jit_step, make_step

pytestmark = pytest.mark.usefixtures("quick_compile")


@dataclasses.dataclass(frozen=True)
class Case:
    """A system at a few thousand parameters; of its name in `CASES` the first word counts.

    Attributes:
      config: the system's.
      rows: count -> rows in the layout of its template, answers included.
      lengths: in which the rows fit with room to spare.
      frame_size: side of its pictures; None for a system without.
      frozen: regex of paths that stay as they are in its training.
      files: what `export` writes of it that together are the whole model, "FORMAT/..."; none for a
        system that is no paper's.
    """

    config: Any
    rows: Callable[[int], list[Encoded]]
    lengths: Lengths
    frame_size: int | None
    frozen: str
    files: tuple[str, ...] = ()


def text_rows(count: int) -> list[Encoded]:
    rng = np.random.default_rng(0)
    text = lambda n: tuple(int(i) for i in rng.integers(3, 20, n))  # noqa: E731
    return [
        Encoded([Segment(text(2 + i % 4)), Segment((*text(1 + i % 3), tiny.EOS), is_target=True)])
        for i in range(count)
    ]


LYNX = LynxConfig(
    tiny.llama_config(num_layers=3, adapter_every=2, adapter_dim=6),
    EvaVitConfig(image_size=8, patch_size=4, num_layers=1, embed_dim=32, mlp_dim=16, num_heads=16),
    ResamplerConfig(
        embed_dim=16, media_dim=32, mlp_dim=24, num_latents=3, num_layers=2, num_heads=8, head_dim=2
    ),
)
OWL = MplugOwlConfig(
    tiny.llama_config(),
    ClipVisionConfig(
        image_size=8, patch_size=4, num_layers=1, embed_dim=8, mlp_dim=16, num_heads=2
    ),
    AbstractorConfig(
        embed_dim=8, out_dim=16, mlp_dim=12, num_queries=3, num_layers=2, num_heads=2, dropout=0.1
    ),
)
VISUAL_LLAMA = VisualLlamaConfig(
    tiny.llama_config(added_rows=3, added_logits=True),
    tiny.clip_config().vision,
    projection_dim=10,
    connector=ConnectorConfig(num_tokens=3),
)
LMEYE_BLIP2_FROZEN = r"blip2\.(?!queries).*|language\..*|clip\..*"
LMEYE_FILES = ("original/checkpoint.pth", "hf/language", "hf/clip")
BLIP2_FILES = ("original/checkpoint.pth", "hf/blip-2", "hf/language")


def lmeye(config: LMEyeConfig) -> Case:
    return Case(
        config,
        lambda count: tiny.lmeye_rows(config, count),
        tiny.LENGTHS,
        frame_size=8,
        frozen=r"clip\..*|language\..*",
        files=LMEYE_FILES,
    )


CASES = {  # the system; what of it, after a comma
    "lmeye": lmeye(tiny.lmeye_config()),
    "lmeye, on OPT": lmeye(tiny.lmeye_config(language=tiny.opt_config(added_rows=2))),
    "lmeye, on BLOOM": lmeye(tiny.lmeye_config(language=tiny.bloom_config(added_rows=2))),
    "lmeye, on MPT": lmeye(tiny.lmeye_config(language=tiny.mpt_config(added_rows=2))),
    "lmeye_blip2, on T5": Case(
        tiny.lmeye_blip2_config(),
        lambda count: tiny.lmeye_blip2_rows(count, encodes=True),
        Lengths(target=8, request=12),
        frame_size=8,
        frozen=LMEYE_BLIP2_FROZEN,
        files=("original/checkpoint.pth", "hf/blip-2", "hf/clip"),
    ),
    "lmeye_blip2, on ChatGLM2": Case(
        tiny.lmeye_blip2_config(language=tiny.chatglm_config()),
        lambda count: tiny.lmeye_blip2_rows(count, encodes=False),
        Lengths(target=9, prefix=9),
        frame_size=8,
        frozen=LMEYE_BLIP2_FROZEN,
        files=("original/checkpoint.pth", "hf/blip-2", "hf/language", "hf/clip"),
    ),
    "minigpt4": Case(
        MiniGPT4Config(tiny.llama_config(), tiny.blip2_config()),
        tiny.picture_rows,
        Lengths(target=18),
        frame_size=8,
        frozen=r"blip2\..*|language\..*",
        files=BLIP2_FILES,
    ),
    "cheetor": Case(
        CheetorConfig(tiny.llama_config(num_layers=4), tiny.blip2_config(), update_layer=2),
        lambda count: tiny.picture_rows(count, guided=True),
        Lengths(target=18),
        frame_size=8,
        frozen=r"blip2\..*|language\..*|projection\..*",
        files=BLIP2_FILES,
    ),
    "lynx": Case(
        LYNX,
        tiny.picture_rows,
        Lengths(target=18),
        frame_size=8,
        frozen=r"vision\..*|language\.(?!adapters\.).*|frame_embedding",
        files=("original/finetune_lynx.pt", "original/eva_vit_g.pth", "hf/language"),
    ),
    "mplug_owl": Case(
        OWL,
        lambda count: tiny.picture_rows(count, q=4),
        Lengths(target=19),
        frame_size=8,
        frozen=r"vision\..*|language\..*",
        files=("hf",),
    ),
    "visual_llama": Case(
        VISUAL_LLAMA,
        tiny.picture_rows,
        Lengths(target=18),
        frame_size=8,
        frozen=r"clip\..*|language\.(?!embedding\.added).*",
        files=("original/out.pt", "hf/language", "hf/clip"),
    ),
    "language_model": Case(
        LanguageModelConfig(tiny.llama_config()),
        text_rows,
        Lengths(target=12),
        frame_size=None,
        frozen=r"language\.embedding\..*",
    ),
}


def system_of(name: str) -> str:
    return name.partition(",")[0]


ROWS, NEW = 8, 5
WAYS = {
    "greedy": {},
    "sampling": dict(do_sample=True, top_p=0.9, num_return_sequences=2),
    "beams": dict(num_beams=3, no_repeat_ngram_size=2),
}
# Of a system, decoding sees the cache alone: the ways of one kind of it show nothing new in others.
SEEN = {"greedy": CASES, "sampling": ["lmeye"], "beams": ["lmeye", "cheetor", "lmeye_blip2, on T5"]}
ANSWERING = [
    pytest.param(name, settings, id=f"{name}-{way}")
    for name in CASES
    for way, settings in WAYS.items()
    if name in SEEN[way]
]
# And so do other decoders below the same system.
SYSTEMS_ALONE = [name for name in CASES if name == system_of(name) or "T5" in name]
# LMEye trains on every mesh in tests/parallel/test_sharding.py.
SPREAD = [
    pytest.param(name, preset, sizes, marks=[] if preset == "fsdp_tp" else pytest.mark.slow)
    for name in SYSTEMS_ALONE
    if name != "lmeye"
    for preset, sizes in (("dp", (8, 1, 1)), ("fsdp", (1, 8, 1)), ("fsdp_tp", (2, 2, 2)))
]


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def system(case) -> System:
    name = next(name for name, other in CASES.items() if other is case)
    return make_system(system_of(name), config_to_dict(case.config))


@pytest.fixture(scope="module")
def params(system) -> dict[str, np.ndarray]:
    return tiny.random_params(specs(system))


def make_batch(case: Case, *, answers: bool, wider: int = 0) -> Batch:
    sizes = {name: n and n + wider for name, n in dataclasses.asdict(case.lengths).items()}
    rows = case.rows(ROWS)
    if not answers:
        prompt = lambda row: [segment for segment in row.target if not segment.is_target]  # noqa: E731
        rows = [dataclasses.replace(row, target=prompt(row)) for row in rows]
    prefix, request, target = assemble(rows, Lengths(**sizes), tiny.PAD)
    batch = Batch(np.arange(100, 100 + ROWS), target, prefix=prefix, request=request)
    if case.frame_size is None:
        return batch
    shape = (ROWS, 1, case.frame_size, case.frame_size, 3)
    frames = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    return dataclasses.replace(batch, frames=frames)


def pick(batch: Batch, rows: list[int]) -> Batch:
    return jax.tree.map(lambda x: x[np.array(rows)], batch)


def all_logits(system: System, params, batch: Batch) -> np.ndarray:
    """[b t v] at the positions of the target."""
    read = lambda p, b: (m := merge(system, p)).logits(m.hidden(b).states)  # noqa: E731
    return np.asarray(jax.jit(read)(params, batch))


@pytest.mark.parametrize("case", SYSTEMS_ALONE, indirect=True, scope="module")
def test_prefill_and_decode_give_what_reading_gives(case, system, params):
    whole, prompt = (make_batch(case, answers=answers) for answers in (True, False))
    wanted = all_logits(system, params, whole)
    ends, starts = whole.target.segments.sum(1), prompt.target.segments.sum(1)
    logits, cache = jax.jit(lambda p, b: merge(system, p).prefill(b, ROWS))(params, prompt)
    decode = jax.jit(lambda p, tokens, cache: merge(system, p).decode(tokens, cache))
    for offset in range(int((ends - starts).max())):
        for row in np.flatnonzero(starts + offset <= ends):
            np.testing.assert_allclose(
                logits[row], wanted[row, starts[row] + offset - 1], atol=2e-5
            )
        at = np.minimum(starts + offset, ends - 1)
        logits, cache = decode(params, whole.target.tokens[np.arange(ROWS), at], cache)


@pytest.mark.parametrize("case", SYSTEMS_ALONE, indirect=True, scope="module")
def test_alone_is_batched_whatever_the_neighbours_and_pads(case, system, params):
    batch, wide = (make_batch(case, answers=True, wider=wider) for wider in (0, 3))
    lengths, together = batch.target.segments.sum(1), all_logits(system, params, batch)
    for rows in ([2], [5, 0, 7, 5]):
        logits = all_logits(system, params, pick(wide, rows))
        for i, row in enumerate(rows):
            n = lengths[row]
            np.testing.assert_allclose(logits[i, :n], together[row, :n], atol=2e-5)


@pytest.mark.parametrize("case", SYSTEMS_ALONE, indirect=True, scope="module")
def test_rows_that_share_a_row_lose_what_they_lose_alone(case, system, params):
    """Losses and gradients; systems that cannot share rows say so."""
    rows = case.rows(ROWS)
    pairs = [rows[i : i + 2] for i in range(0, ROWS, 2)]
    alone = make_batch(case, answers=True)
    if alone.prefix is not None or alone.request is not None or set(alone.target.slots) - {"media"}:
        with pytest.raises(ValueError, match="packing is for systems that read a row once"):
            assemble_packed(pairs, 2 * case.lengths.target, tiny.PAD)
        return
    target = assemble_packed(pairs, 2 * case.lengths.target, tiny.PAD)
    packed = Batch(np.arange(len(pairs)), target)
    if alone.frames is not None:
        frames = alone.frames.reshape(len(pairs), 2, *alone.frames.shape[2:])
        packed = dataclasses.replace(packed, frames=frames)

    def loss(params, batch):
        total, weight, _ = merge(system, params).loss(batch)
        return total, weight

    values = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (one, weight), gradients = values(params, alone)
    (other, same), others = values(params, packed)
    assert float(other) == pytest.approx(float(one), abs=1e-4) and same == weight
    for path, gradient in gradients.items():
        np.testing.assert_allclose(others[path], gradient, atol=2e-4, err_msg=path)


@pytest.mark.parametrize(("case", "settings"), ANSWERING, indirect=["case"], scope="module")
def test_answers_alone_are_answers_in_a_batch(case, system, params, settings):
    config = GenerationConfig(NEW, eos_tokens=(tiny.EOS,), pad_token=tiny.PAD, **settings)
    generate = Generator(system, config)
    answers = np.asarray(generate(params, make_batch(case, answers=False)).tokens)
    assert len(np.unique(answers)) > 3
    prompts = make_batch(case, answers=False, wider=3)
    apart = dict(params)  # as models are held that are there to answer
    take_apart(apart, specs(system), "language.")
    assert any(map(is_apart, apart.values()))
    for rows in ([2], [5, 0, 7, 5]) if settings == {} else ([2],):
        ids = generate(apart, pick(prompts, rows)).tokens
        np.testing.assert_array_equal(ids, answers[rows])


def train(case: Case, system: System, mesh: Mesh, preset: str):
    """(losses of four steps on one batch, state, frozen parameters, jitted step)."""
    settings = OptimizerConfig(learning_rate=0.01, schedule="constant", eps=1e-6)
    with jax.set_mesh(mesh):
        state, frozen, optimizer = tiny.start(system, mesh, preset, case.frozen, settings)
        step = jit_step(make_step(system, optimizer, seed=0), state, frozen, mesh)
        batch, losses = put_rows(make_batch(case, answers=True), mesh), []
        for _ in range(4):
            state, metrics = step(state, frozen, batch)
            losses.append(float(metrics["loss"]))
    return losses, state, frozen, step


@pytest.fixture(scope="module")
def trained(case, system):
    return train(case, system, make_mesh(devices=jax.devices()[:1]), "dp")


def test_it_learns_and_only_what_trains_changes(case, params, trained):
    losses, state, frozen, _ = trained
    assert losses[-1] < losses[0]
    assert set(frozen) == {path for path in params if re.fullmatch(case.frozen, path)} != set()
    for path, value in frozen.items():
        np.testing.assert_array_equal(value, params[path], err_msg=path)
    for path, value in state.trainable.items():
        assert not np.array_equal(value, params[path]), f"{path} has no gradient"
    moments = state.opt_state["adam"]
    assert set(moments.mu) == set(moments.nu) == set(state.trainable)


@pytest.mark.parametrize(
    ("case", "preset", "sizes"), SPREAD, indirect=["case"], scope="module", ids=str
)
def test_training_does_not_depend_on_the_mesh(case, system, trained, preset, sizes):
    """Losses and weights to rounding; everything lies where the preset says; one compile."""
    mesh = make_mesh(*sizes)
    losses, state, frozen, step = train(case, system, mesh, preset)
    np.testing.assert_allclose(losses, trained[0], rtol=5e-5)
    for path, value in trained[1].trainable.items():
        np.testing.assert_allclose(state.trainable[path], value, atol=5e-4, err_msg=path)
    assert step._cache_size() == 1
    placed, moments = resolve(specs(system), mesh, preset), state.opt_state["adam"]
    for leaves in (frozen, state.trainable, moments.mu, moments.nu):
        for path, leaf in leaves.items():
            assert leaf.sharding.is_equivalent_to(placed[path], leaf.ndim), path
    cuts = [len({str(s.index) for s in x.addressable_shards}) for x in frozen.values()]
    assert max(cuts) == (1 if preset == "dp" else sizes[1] * sizes[2])


def test_sharded_is_unsharded(case, system, params):
    batch = make_batch(case, answers=True)
    prompts = make_batch(case, answers=False)
    wanted = all_logits(system, params, batch)
    generate = Generator(system, GenerationConfig(NEW, eos_tokens=(tiny.EOS,)))
    answers = generate(params, prompts).tokens
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, resolve(specs(system), mesh, "fsdp_tp"))
        logits = all_logits(system, spread, put_rows(batch, mesh))
        ids = generate(spread, put_rows(prompts, mesh)).tokens
    seen = batch.target.segments > 0
    np.testing.assert_allclose(logits[seen], wanted[seen], atol=5e-5)
    np.testing.assert_array_equal(ids, answers)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.files])
def test_exported_and_imported_again_it_is_bit_equal(name, tmp_path: Path):
    check = name == "mplug_owl"  # it compiles programs, so not all of them
    case, name = CASES[name], system_of(name)
    system = SYSTEMS[name](case.config)
    params = tiny.random_params(specs(system))
    for path in params:
        if path.endswith(".added"):  # no format of others has a place for these rows
            params[path] = np.zeros_like(params[path])
    header = {"system": name, "variant": None, "model": config_to_dict(case.config)}
    save_imported(tmp_path / "first", header, params, {})
    for format in {file.split("/")[0] for file in case.files}:
        export_checkpoint(tmp_path / "first", format=format, out=tmp_path / format, check=check)
    sources = [tmp_path / file for file in case.files]
    report = import_checkpoint(system=name, sources=sources, out=tmp_path / "second", check=check)
    assert not check or report["check"] | {"logits": 0.0, "tensors": len(params)} == report["check"]
    _, again = load_imported(tmp_path / "second")
    assert again.keys() == params.keys()
    for path, value in params.items():
        assert again[path].dtype == jnp.float32
        np.testing.assert_array_equal(again[path], value, err_msg=path)
