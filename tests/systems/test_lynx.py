"""What is particular to Lynx: pictures, videos and text in one batch; frames; cross-attention."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from mmjax.data.batch import Batch, media_places, stack_padded
from mmjax.data.sequence import Lengths, assemble
from mmjax.data.templates import Encoded, Segment
from mmjax.models.eva_vit import EvaVitConfig
from mmjax.models.resampler import ResamplerConfig
from mmjax.nn.param import merge, specs
from mmjax.parallel.mesh import make_abstract_mesh, make_mesh
from mmjax.parallel.sharding import PRESETS, place, resolve, rows_sharding
from mmjax.systems.lynx import Lynx, LynxConfig
from mmjax.train.tower import Tower

pytestmark = pytest.mark.usefixtures("quick_compile")

Q, SIZE = 2, 8
LANGUAGE = tiny.llama_config(num_layers=3, adapter_every=2, adapter_dim=6)
CONFIG = LynxConfig(
    LANGUAGE,
    EvaVitConfig(image_size=SIZE, patch_size=4, num_layers=1, embed_dim=8, mlp_dim=16, num_heads=2),
    ResamplerConfig(
        embed_dim=16, media_dim=8, mlp_dim=24, num_latents=Q, num_layers=2, num_heads=2, head_dim=4
    ),
    num_frames=3,
)
CROSS = dataclasses.replace(
    CONFIG, language=tiny.llama_config(num_layers=3, cross_every=2), fusion="cross-attention"
)
FRAMES = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)
# Rows: two pictures; a video; text; a picture and a video. The numbers are those of `FRAMES`.
ROWS = [[0, 1], [[2, 3, 4]], [], [5, [0, 2, 4]]]
TEXTS = [[1, 5, 6, 7], [1, 8], [1, 9, 10], [1, 4, 4, 4, 4]]


def batch(rows: list[int], config: LynxConfig = CONFIG, *, places: int = 4, cut: int = 0) -> Batch:
    """These of `ROWS`, their texts without the last ``cut`` tokens."""
    q, encoded, frames, counts = config.tokens_per_picture, [], [], []
    for row in rows:
        media, text = ROWS[row], TEXTS[row][: len(TEXTS[row]) - cut]
        slots = [Segment((0,), slot=("media", i)) for i in range(q * len(media))]
        encoded.append(Encoded([*slots, Segment(tuple(text))]))
        numbers = [n for one in media for n in (one if isinstance(one, list) else [one])]
        frames.append(FRAMES[numbers])
        counts.append([len(one) if isinstance(one, list) else None for one in media])
    length = max(sum(len(segment.ids) for segment in row.target) for row in encoded)
    target = assemble(encoded, Lengths(length + 1), 0)[2]
    given = Batch(np.arange(len(rows)), target)
    if not places:
        return given
    item, time = media_places(counts, places)
    stacked = stack_padded(frames, places)
    return dataclasses.replace(given, frames=stacked, frame_item=item, frame_time=time)


@pytest.fixture(scope="module", params=["prefix", "cross-attention"])
def model(request):
    config = CONFIG if request.param == "prefix" else CROSS
    system = Lynx(config)
    return config, system, tiny.random_params(specs(system))


def read(system: Lynx, params: dict, given: Batch) -> tuple[dict, np.ndarray]:
    @jax.jit
    def compute(params, given):
        output = (made := merge(system, params)).hidden(given)
        return output.aux, made.logits(output.states)

    aux, logits = compute(params, given)
    return aux, np.asarray(logits)


def test_each_row_of_a_mixed_batch_is_as_if_alone(model):
    """With no more places than it needs; the row of text without any."""
    config, system, params = model
    logits = read(system, params, batch([0, 1, 2, 3], config))[1]
    assert np.isfinite(logits).all()
    for row, places in enumerate((2, 3, 0, 4)):
        alone = read(system, params, batch([row], config, places=places))[1]
        length = int(batch([row], config).target.segments.sum())
        np.testing.assert_allclose(logits[row, :length], alone[0, :length], atol=2e-5)


def test_decoding_gives_what_reading_gives(model):
    config, system, params = model
    whole, prompt = batch([0, 1, 2, 3], config), batch([0, 1, 2, 3], config, cut=1)
    wanted = read(system, params, whole)[1]
    last = whole.target.segments.sum(1) - 1
    logits, cache = jax.jit(lambda p, b: merge(system, p).prefill(b, 1))(params, prompt)
    rows = np.arange(4)
    np.testing.assert_allclose(logits, wanted[rows, last - 1], atol=2e-5)
    tokens = np.array([text[-1] for text in TEXTS])
    twice = np.repeat(rows, 2)  # as beams
    logits, _ = jax.jit(lambda p, t, c: merge(system, p).decode(t, c))(
        params, tokens[twice], cache.copies(2)
    )
    np.testing.assert_allclose(logits, wanted[twice, last[twice]], atol=2e-5)


def test_features_made_before_the_step_belong_to_the_same_media():
    """What training hands to the model: the tower's output, and which medium each is of."""
    system, mesh, given = Lynx(CONFIG), make_mesh(devices=jax.devices()[:1]), batch([0, 1, 3])
    params = tiny.random_params(specs(system))
    on_mesh = jax.tree.map(lambda x: place(x, rows_sharding(mesh)), given)
    with jax.set_mesh(mesh):
        tower = Tower(system, mesh, dict(stages=["s"], s=dict(batch_size=3)))
        seen = tower.see(params, on_mesh)
    assert seen.frames is None and seen.features.shape[:2] == (3, 4)
    wanted, found = (read(system, params, one)[1] for one in (given, seen))
    there = np.asarray(given.target.segments) > 0
    np.testing.assert_allclose(found[there], wanted[there], atol=2e-5)


@pytest.mark.parametrize("devices", [1, 2])
def test_the_tower_is_not_called_for_empty_places(devices, monkeypatch):
    """Five pictures in 16 places: two calls of three for one device. Two devices that have two and
    four: two calls of two each. Not one bit of them changes."""
    system, given = Lynx(CONFIG), batch([0, 2, 1, 2] if devices == 1 else [0, 2, 3, 2])
    mesh = make_mesh(data=devices, devices=jax.devices()[:devices])
    params = tiny.random_params(specs(system))
    on_mesh = jax.tree.map(lambda x: place(x, rows_sharding(mesh)), given)
    tower = Tower(system, mesh, dict(stages=["s"], s=dict(batch_size=3 if devices == 1 else 4)))
    calls = []
    monkeypatch.setattr(
        tower, "_features", lambda *args, see=tower._features: calls.append(0) or see(*args)
    )
    with jax.set_mesh(mesh):
        everywhere, num_calls = tower.see(params, on_mesh).features, len(calls)
        seen = tower.see(params, on_mesh, most=tower.most(given)).features
    assert num_calls == (6 if devices == 1 else 4)
    assert len(calls) - num_calls == 2
    np.testing.assert_array_equal(seen, everywhere)
    assert not np.asarray(seen)[given.frame_item < 0].any()
    shown = given.frames[given.frame_item >= 0]
    wanted = jax.jit(lambda p, x: merge(system, p).media_features(x))(params, shown)
    np.testing.assert_allclose(np.asarray(seen)[given.frame_item >= 0], wanted, atol=1e-5)
    assert tower.most(dataclasses.replace(given, frame_item=None)) is None
    with jax.set_mesh(mesh):
        nothing = batch([2, 2, 2, 2])
        assert tower.most(nothing) == 0
        put = jax.tree.map(lambda x: place(x, rows_sharding(mesh)), nothing)
        assert not np.asarray(tower.see(params, put, most=0).features).any()


def test_a_video_knows_the_order_of_its_frames():
    system = Lynx(CONFIG)
    params = tiny.random_params(specs(system))
    given = batch([1], places=3)
    turned = dataclasses.replace(given, frames=given.frames[:, ::-1])
    without = dataclasses.replace(given, frame_time=np.full((1, 3), -1, np.int32))
    vectors = lambda b: np.asarray(read(system, params, b)[0]["media"])[:, :Q]  # noqa: E731
    assert np.abs(vectors(given) - vectors(turned)).max() > 1e-3
    assert np.abs(vectors(given) - vectors(without)).max() > 1e-3
    same = dataclasses.replace(turned, frame_time=without.frame_time)
    np.testing.assert_allclose(vectors(without), vectors(same), atol=1e-5)


def test_a_video_of_one_frame_keeps_its_embedding_unless_asked():
    one = dataclasses.replace(CONFIG, num_frames=1)
    params = tiny.random_params(specs(Lynx(one)))
    video = batch([0], places=2)
    video = dataclasses.replace(video, frame_time=np.array([[0, -1]], np.int32))
    seen = {}
    for taken in (False, True):
        system = Lynx(dataclasses.replace(one, one_frame_is_a_picture=taken))
        seen[taken] = np.asarray(read(system, params, video)[0]["vision"])
    added = seen[False] - seen[True]
    np.testing.assert_allclose(added[0, 0], np.tile(params["frame_embedding"], (5, 1)), atol=1e-5)
    assert not added[0, 1].any(), "the other one is a picture"


def test_cross_attention_starts_as_the_plain_language_model():
    system = Lynx(CROSS)
    params = tiny.random_params(specs(system))
    params |= {path: np.zeros_like(x) for path, x in params.items() if path.endswith("_gate")}
    with_media = read(system, params, batch([0, 1], CROSS))[1]
    without = read(system, params, batch([0, 1], CROSS, places=0))[1]
    np.testing.assert_allclose(with_media, without, atol=1e-5)
    with pytest.raises(ValueError, match="give frame_item"):
        merge(system, params).hidden(dataclasses.replace(batch([0], CROSS), frame_item=None))


def test_what_trains_at_full_size():
    """Lynx reference, section 1: 0.688 G of 8.414 G, and with an adapter in each layer 0.957 G."""
    wanted = specs(Lynx(LynxConfig.named("7b")))
    size = lambda some: sum(spec.size for spec in some.values())  # noqa: E731
    assert size(wanted) == 8_413_655_312
    prefixes = ("resampler.", "frame_embedding", "language.adapters.")
    assert size({p: s for p, s in wanted.items() if p.startswith(prefixes)}) == 688_430_224
    assert size({p: s for p, s in wanted.items() if p.startswith("vision.")}) == 986_801_280
    language = dataclasses.replace(LynxConfig.named("7b").language, adapter_every=1)
    every = specs(Lynx(LynxConfig.named("7b", language=language)))
    assert size({p: s for p, s in every.items() if p.startswith(prefixes)}) == 957_095_072
    for variant in ("7b", "7b-224", "7b-cross-attention"):
        for preset in PRESETS:
            resolve(specs(Lynx(LynxConfig.named(variant))), make_abstract_mesh(8, 1, 4, 2), preset)


def test_parts_that_do_not_go_together_are_told_at_once():
    with pytest.raises(ValueError, match="media_dim") as error:
        dataclasses.replace(
            CONFIG,
            resampler=dataclasses.replace(CONFIG.resampler, media_dim=9, embed_dim=12),
            num_frames=0,
            fusion="cross-attention",
        )
    for told in ("make the two embed_dim the same", "num_frames is 0", "cross_every 0"):
        assert told in str(error.value)
    with pytest.raises(ValueError, match="no variant '13b'; there are tiny, 7b"):
        LynxConfig.named("13b")
