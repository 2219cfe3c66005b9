"""CLIP against transformers' `CLIPModel`: every layer of both towers, projections, the loss."""

import jax
import numpy as np
import pytest
import tiny
import torch
import transformers

from conversion.engine import load
from conversion.huggingface import config_from_hf
from conversion.io import read
from conversion.tables.clip import CLIP
from mmjax.data.batch import Batch, Sequence
from mmjax.models.clip import MEAN, STD, Clip, ClipConfig
from mmjax.nn.param import merge, specs
from mmjax.nn.stack import run
from mmjax.systems.foundation import Contrastive, ContrastiveConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

VISION = dict(
    image_size=12, patch_size=4, num_hidden_layers=3, hidden_size=16, intermediate_size=24
)
TEXT = dict(
    vocab_size=21,
    max_position_embeddings=8,
    num_hidden_layers=2,
    hidden_size=20,
    intermediate_size=28,
)
VARIANTS = {
    "end is the largest id": dict(eos_token_id=2),
    "end token": dict(eos_token_id=7, hidden_act="gelu", layer_norm_eps=1e-3),
}
LENGTHS = np.array([7, 4, 5])
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
SEGMENTS = (np.arange(7) < LENGTHS[:, None]).astype(np.int32)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """(their model, our config and parameters, read from the folder that theirs was saved in)."""
    text = TEXT | dict(num_attention_heads=5) | VARIANTS[request.param]
    config = transformers.CLIPConfig(
        vision_config=VISION | dict(num_attention_heads=2), text_config=text, projection_dim=10
    )
    theirs = transformers.CLIPModel(config).eval()
    tiny.randomise(theirs)
    theirs.logit_scale.data.fill_(1.3)
    folder = tmp_path_factory.mktemp("clip")
    theirs.save_pretrained(folder)
    config = config_from_hf(folder)
    return theirs, config, load(CLIP, read(folder), specs(Clip(config)))


def captions(config) -> np.ndarray:
    """i32[3 7]: the end token, then pads. Other ids are larger where the end token is told."""
    eos = config.text.eos_token
    tokens = np.random.default_rng(1).integers(8 if eos else 3, 20, (3, 7))
    tokens[np.arange(3), LENGTHS - 1] = eos or 20
    return np.where(SEGMENTS > 0, tokens, 0).astype(np.int32)


def pixels() -> np.ndarray:
    return ((FRAMES / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)


def torch_pixels() -> torch.Tensor:
    return torch.tensor(pixels().transpose(0, 3, 1, 2))


def outputs(modules, call) -> list[np.ndarray]:
    """What ``modules`` give while ``call`` runs."""
    found = []
    hooks = [
        module.register_forward_hook(
            lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out)
        )
        for module in modules
    ]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return [x.numpy() for x in found]


def test_every_layer_of_the_vision_tower(pair):
    theirs, config, params = pair
    tower = theirs.vision_model
    modules = (
        tower.pre_layrnorm,
        *tower.encoder.layers,
        tower.post_layernorm,
        theirs.visual_projection,
    )
    wanted = outputs(modules, lambda: theirs.get_image_features(torch_pixels()))

    @jax.jit
    def compute(params):
        model = merge(Clip(config), params)
        states, pooled = model.vision(pixels())
        # The first layer's input is not handed out; an empty tower of the same weights gives it.
        x = model.vision.patch(patches_by_hand(pixels()))
        first = np.ones((3, 1, 1)) * model.vision.class_embedding[...]
        x = model.vision.pre_norm(jax.numpy.concatenate([first, x], 1) + model.vision.position[...])
        layer = lambda block, x, *_: (block(x, causal=False), None)  # noqa: E731
        last, _, tapped = run(model.vision.layers, layer, x, taps=(0, 1, 2))
        return (x, *tapped, pooled, model.image_features(FRAMES, np.float32)), states, last

    ours, states, last = compute(params)
    for number, (mine, other) in enumerate(zip(ours, wanted, strict=True)):
        np.testing.assert_allclose(mine, other, atol=1e-4, err_msg=f"output {number}")
    np.testing.assert_allclose(states, last, atol=1e-5)


def patches_by_hand(x: np.ndarray) -> np.ndarray:
    """The nine patches of 4 x 4 pixels of 12 x 12, in reading order."""
    return np.stack(
        [x[:, i : i + 4, j : j + 4].reshape(len(x), -1) for i in (0, 4, 8) for j in (0, 4, 8)],
        axis=1,
    )


def test_every_layer_of_the_text_tower(pair):
    theirs, config, params = pair
    tower, tokens = theirs.text_model, captions(config)
    call = lambda: theirs.get_text_features(  # noqa: E731
        torch.tensor(tokens).long(), attention_mask=torch.tensor(SEGMENTS).long()
    )
    modules = (
        tower.embeddings,
        *tower.encoder.layers,
        tower.final_layer_norm,
        theirs.text_projection,
    )
    *wanted, feature = outputs(modules, call)

    @jax.jit
    def compute(params):
        model = merge(Clip(config), params)
        x = model.text.embed(tokens, np.float32)
        layer = lambda block, x, *_: (block(x, causal=True, segments=SEGMENTS), None)  # noqa: E731
        _, _, tapped = run(model.text.layers, layer, x, taps=(0, 1))
        return (x, *tapped, model.text(x, SEGMENTS)), model.text_features(
            tokens, SEGMENTS, np.float32
        )

    ours, our_feature = compute(params)
    real = SEGMENTS > 0
    for number, (mine, other) in enumerate(zip(ours, wanted, strict=True)):
        np.testing.assert_allclose(mine[real], other[real], atol=1e-4, err_msg=f"output {number}")
    np.testing.assert_allclose(our_feature, feature, atol=1e-4)


def test_contrastive_loss(pair):
    """With one caption twice, and no two pictures that share it, ours is the plain loss."""
    theirs, config, params = pair
    tokens = captions(config)
    with torch.no_grad():
        wanted = theirs(
            torch.tensor(tokens).long(),
            torch_pixels(),
            torch.tensor(SEGMENTS).long(),
            return_loss=True,
        )
    none = np.zeros_like(tokens)
    text = Sequence(tokens, none, SEGMENTS, none, none.astype(np.float32), {})
    batch = Batch(np.arange(3), text, request=text, frames=FRAMES[:, None])
    system = Contrastive(ContrastiveConfig(config))
    params = {f"clip.{path}": value for path, value in params.items()}
    loss, weight, further = jax.jit(lambda params: merge(system, params).loss(batch))(params)
    np.testing.assert_allclose(loss / weight, wanted.loss, atol=1e-4)
    hits = wanted.logits_per_image.argmax(1).numpy() == np.arange(3)
    assert float(further["retrieval"]) == hits.sum()


def test_published_size():
    """openai/clip-vit-large-patch14: 427,616,513 parameters."""
    assert sum(spec.size for spec in specs(Clip(ClipConfig.vit_l14())).values()) == 427_616_513
