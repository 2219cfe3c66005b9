"""What is particular to Cheetor: the second look at the pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmjax.data.batch import Batch, Sequence
from mmjax.generate.config import GenerationConfig
from mmjax.generate.generator import Generator
from mmjax.models.blip2 import Blip2Config
from mmjax.models.eva_vit import EvaVitConfig
from mmjax.models.qformer import QFormerConfig
from mmjax.nn.param import merge, specs
from mmjax.parallel.mesh import make_mesh
from mmjax.systems import cheetor
from mmjax.systems.cheetor import Cheetor, CheetorConfig
from mmjax.train import build

pytestmark = pytest.mark.usefixtures("quick_compile")

VISION = EvaVitConfig(
    image_size=8, patch_size=4, num_layers=1, embed_dim=8, mlp_dim=16, num_heads=2
)
QFORMER = QFormerConfig(num_layers=2, embed_dim=12, mlp_dim=24, num_heads=3, image_dim=8)
BLIP2 = Blip2Config(vision=VISION, qformer=QFORMER, num_queries=3)
CONFIG = CheetorConfig(tiny.llama_config(num_layers=4), BLIP2, update_layer=2)
FIRST, SECOND, ENDS = (2, 5), (7, 10), 13  # places of the pictures, the prompt's last token


def config(**changes) -> CheetorConfig:
    return dataclasses.replace(CONFIG, **changes)


def batch(*, guided: bool = True, rows: int = 2, places: int = 3, answer: int = 4) -> Batch:
    """Two pictures a row, each ``places`` tokens."""
    rng = np.random.default_rng(0)
    first, second = 2, 4 + places
    ends = second + places + 3
    t = ends + 1 + answer
    shape = (rows, t)
    media = np.full(shape, -1, np.int32)
    media[:, first : first + places] = np.arange(places)
    media[:, second : second + places] = places + np.arange(places)
    guidance = np.full(shape, -1, np.int32)
    guidance[:, ends] = 0
    tokens = rng.integers(3, 20, shape).astype(np.int32)
    weights = np.zeros(shape, np.float32)
    weights[:, ends : t - 1] = 1
    slots = {"media": media} | ({"guidance": guidance} if guided else {})
    target = Sequence(
        tokens=tokens,
        positions=np.tile(np.arange(t, dtype=np.int32), (rows, 1)),
        segments=np.ones(shape, np.int32),
        targets=np.roll(tokens, -1, axis=1),
        weights=weights,
        slots=slots,
    )
    frames = rng.integers(0, 256, (rows, 2, 8, 8, 3)).astype(np.uint8)
    return Batch(np.arange(rows, dtype=np.int32), target, frames=frames)


def random_model(settings: CheetorConfig = CONFIG) -> tuple[Cheetor, dict]:
    system = Cheetor(settings)
    return system, tiny.random_params(specs(system))


def at_start(params: dict) -> dict:
    zero = ("_projection.kernel", "_projection.bias")
    return {
        path: np.zeros_like(x) if path.startswith("vpgc.") and path.endswith(zero) else x
        for path, x in params.items()
    }


def logits(system: Cheetor, params: dict, given: Batch) -> np.ndarray:
    @jax.jit
    def read(params, given):
        model = merge(system, params)
        return model.logits(model.hidden(given).states)

    return np.asarray(read(params, given))


def test_it_starts_as_the_plain_model():
    system, params = random_model()
    params = at_start(params)
    plain = logits(system, params, batch(guided=False))
    np.testing.assert_allclose(logits(system, params, batch()), plain, atol=1e-5)


def test_first_the_way_back_learns_then_the_rest():
    system, params = random_model()

    def grads(params):
        trained = {path: x for path, x in params.items() if path.startswith("vpgc.")}
        loss = lambda some: merge(system, params | some).loss(batch())[0]  # noqa: E731
        made = jax.jit(jax.grad(loss))(trained)
        return {path: float(jnp.abs(g).max()) for path, g in made.items()}

    start = grads(at_start(params))
    moved = {path for path, size in start.items() if size > 0}
    assert moved == {"vpgc.language_projection.kernel", "vpgc.language_projection.bias"}
    assert all(size > 0 for size in grads(params).values()), "later, all five learn"


@pytest.mark.parametrize("update_layer", [0, 1, 3])
def test_the_look_comes_just_before_its_layer(update_layer):
    """What is added lies on the pictures' places; the guidance is read before."""
    settings = config(update_layer=update_layer)
    system, params = random_model(settings)
    seen = merge(system, params).hidden(batch()).aux
    media = batch().target.slots["media"] >= 0
    difference = np.asarray(seen["after"] - seen["before"])
    assert (np.abs(difference).max(-1) > 0).tolist() == media.tolist()
    np.testing.assert_array_equal(seen["guidance"], np.asarray(seen["before"])[:, ENDS])


def test_all_update_layers_differ_from_the_plain_model_and_from_each_other():
    made = []
    for update_layer in range(4):
        system, params = random_model(config(update_layer=update_layer))
        made.append(logits(system, same_weights(params), batch()))
    plain = logits(*same(random_model()), batch(guided=False))
    for i, one in enumerate(made):
        assert all(np.abs(one - other).max() > 1e-3 for other in [*made[:i], plain])


def same_weights(params: dict) -> dict:
    """As `random_model`'s, whichever way the stack is cut: one layer's after the other."""
    by_layer: dict[str, list] = {}
    for path in sorted(path for path in params if path.startswith("language.layers.")):
        name = path.removeprefix("language.layers.")
        head, _, tail = name.partition(".")
        by_layer.setdefault(tail if head.isdigit() else name, []).append(path)
    made = dict(params)
    for number, (name, paths) in enumerate(sorted(by_layer.items())):
        shape = (4, *params[paths[0]].shape[1:])
        noise = np.random.default_rng(number).normal(size=shape).astype(np.float32)
        noise = 1 + 0.1 * noise if name.endswith("scale") else noise * 0.3
        start = 0
        for path in paths:
            made[path] = noise[start : start + len(params[path])]
            start += len(params[path])
    return made


def same(model: tuple[Cheetor, dict]) -> tuple[Cheetor, dict]:
    return model[0], same_weights(model[1])


def test_pictures_do_not_see_each_other_in_the_second_look():
    system, params = random_model()
    given = batch()
    model = merge(system, params)
    image = model.pictures(given)
    guidance = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16)), jnp.float32)
    both, _ = model.vpgc(model.blip2, image, guidance)
    alone, _ = model.vpgc(model.blip2, image[:, 1:], guidance)
    np.testing.assert_allclose(both[:, 1:], alone, atol=1e-6)


def test_only_the_guidance_carries_the_question_to_the_pictures():
    """Another question changes what is added; another guidance token's state does nothing else."""
    system, params = random_model()
    given = batch()
    tokens = given.target.tokens.copy()
    tokens[:, ENDS - 1] += 1
    other = dataclasses.replace(given, target=dataclasses.replace(given.target, tokens=tokens))
    model = merge(system, params)
    one, two = (model.hidden(each).aux for each in (given, other))
    np.testing.assert_array_equal(one["general"], two["general"])
    assert np.abs(np.asarray(one["added"] - two["added"])).max() > 1e-4


def test_the_second_look_happens_once_a_row_and_not_while_writing(monkeypatch):
    looked = []
    original = cheetor.VPGC.__call__

    def counting(self, blip2, image, guidance):
        looked.append(guidance.shape[0])
        return original(self, blip2, image, guidance)

    monkeypatch.setattr(cheetor.VPGC, "__call__", counting)
    system, params = random_model()
    prompt = batch(answer=0)
    beams = GenerationConfig(max_new_tokens=4, num_beams=3, eos_tokens=(2,))
    Generator(system, beams)(params, prompt)
    assert looked == [2], "two rows, whatever the number of beams and of new tokens"


def test_generation_continues_what_the_whole_text_gives():
    """Greedy tokens with the cache are those of reading prompt and answer anew each time."""
    system, params = random_model()
    settings = GenerationConfig(max_new_tokens=3, eos_tokens=())
    made = np.asarray(Generator(system, settings)(params, batch(answer=0)).tokens)[:, 0]
    tokens = batch(answer=0).target.tokens
    for step in range(3):
        given = batch(answer=step)
        whole = np.concatenate([tokens, made[:, :step]], axis=1).astype(np.int32)
        given = dataclasses.replace(given, target=dataclasses.replace(given.target, tokens=whole))
        np.testing.assert_array_equal(
            logits(system, params, given)[:, -1].argmax(-1), made[:, step]
        )


def test_the_linear_variant():
    system, params = random_model(config(vpg="linear"))
    given = batch(places=4)
    params["vpgc.image_projection.kernel"] = np.zeros_like(params["vpgc.image_projection.kernel"])
    plain = logits(system, params, batch(places=4, guided=False))
    np.testing.assert_allclose(logits(system, params, given), plain, atol=1e-5)
    system, params = random_model(config(vpg="linear"))
    aux = merge(system, params).hidden(given).aux
    weights = aux["guidance"] @ params["vpgc.guidance_projection.kernel"]
    patches = np.asarray(aux["image"])[:, :, 1:] @ params["vpgc.image_projection.kernel"]
    np.testing.assert_allclose(aux["added"], weights[:, None, None] * patches, atol=1e-5)


def test_an_update_layer_out_of_range():
    for layer in (-1, 4):
        with pytest.raises(ValueError, match=rf"update_layer is {layer}.*layers 0 to 3"):
            config(update_layer=layer)
    with pytest.raises(ValueError, match="vpg must be"):
        config(vpg="clip")


def test_a_batch_without_pictures():
    system, params = random_model()
    with pytest.raises(ValueError, match="Cheetor reads pictures"):
        merge(system, params).hidden(dataclasses.replace(batch(), frames=None))


def test_neither_program_nor_memory_grows_with_the_look_at_a_deep_model():
    """The instructions do not depend on the depth, and no part of the stack is copied."""

    def compiled(num_layers: int, guided: bool):
        language = tiny.llama_config(num_layers=num_layers, embed_dim=64, mlp_dim=256, remat="full")
        system = Cheetor(config(language=language, update_layer=num_layers // 2))
        wanted = specs(system)
        params = {p: jax.ShapeDtypeStruct(s.shape, s.dtype) for p, s in wanted.items()}
        trained = {path for path in params if path.startswith("vpgc.")}

        @jax.jit
        def grads(some, rest):
            loss = lambda some: merge(system, rest | some).loss(batch(guided=guided))[0]  # noqa: E731
            return jax.value_and_grad(loss)(some)

        some = {path: x for path, x in params.items() if path in trained}
        rest = {path: x for path, x in params.items() if path not in trained}
        lowered = grads.lower(some, rest)
        layers = sum(x.size * 4 for path, x in params.items() if path.startswith("language.layers"))
        return lowered, layers

    shallow, _ = compiled(4, True)
    deep, layers = compiled(32, True)
    assert len(deep.as_text().splitlines()) == len(shallow.as_text().splitlines())
    with_look = deep.compile().memory_analysis().temp_size_in_bytes
    assert with_look < layers / 4, "a copy of one half would be half of them"


def test_the_queries_of_the_second_look_start_as_blip2s(monkeypatch):
    """Unrounded, whatever the frozen ones are held in; unless a checkpoint has them."""
    wanted = specs(Cheetor(CONFIG))
    given = {"blip2.queries": np.full((3, 12), 1.001, np.float32)}

    def starting(config, wanted, *, put):
        return {path: put(path, x) for path, x in given.items()}

    monkeypatch.setattr(build, "starting_weights", starting)
    settings = dict(
        seed=0,
        preset="dp",
        frozen_dtype="bfloat16",
        stages=["vpgc"],
        vpgc=dict(train=[("vpgc.*", "train", 1.0), (".*", "freeze", 1.0)]),
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    params = build.create_params(settings, wanted, mesh, Cheetor.copies)
    assert params.keys() == wanted.keys()
    np.testing.assert_array_equal(params["vpgc.queries"], given["blip2.queries"])
    assert params["blip2.queries"].dtype == jnp.bfloat16
    given["vpgc.queries"] = np.zeros((3, 12), np.float32)
    params = build.create_params(settings, wanted, mesh, Cheetor.copies)
    assert not params["vpgc.queries"].any()
