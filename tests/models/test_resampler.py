"""The resampler: media of a row are kept apart, whatever stands beside them."""

import jax
import numpy as np
import pytest
import tiny

from mmjax.models.resampler import Resampler, ResamplerConfig
from mmjax.nn.param import merge, specs
from mmjax.parallel.mesh import make_abstract_mesh
from mmjax.parallel.sharding import PRESETS, resolve

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIG = ResamplerConfig(
    embed_dim=12, media_dim=10, mlp_dim=20, num_latents=3, num_layers=3, num_heads=2, head_dim=4
)
MODEL = Resampler(CONFIG)
PARAMS = tiny.random_params(specs(MODEL))
MEDIA = np.random.default_rng(0).normal(size=(2, 8, 10)).astype(np.float32)


@jax.jit
def look(media, item=None):
    return merge(MODEL, PARAMS)(media, item, items=1 if item is None else 3)[0]


def test_each_medium_is_seen_as_if_it_were_alone():
    item = np.array([[0, 0, 0, 1, 1, 1, 1, -1], [1, 1, -1, 0, 0, 0, 0, 0]], np.int32)
    made = np.asarray(look(MEDIA, item)).reshape(2, 3, 3, 12)
    assert np.isfinite(made).all(), "of the third, too, which no row has"
    for row, number in np.ndindex(2, 2):
        alone = look(MEDIA[row : row + 1, item[row] == number])
        np.testing.assert_allclose(made[row, number], alone[0], atol=1e-5)


def test_the_order_of_states_does_not_matter():
    np.testing.assert_allclose(look(MEDIA), look(MEDIA[:, ::-1]), atol=1e-5)


def test_published_size_has_a_place_under_every_preset():
    wanted = specs(Resampler(ResamplerConfig.lynx()))
    assert sum(spec.size for spec in wanted.values()) == 419_758_336
    for preset in PRESETS:
        resolve(wanted, make_abstract_mesh(8, 1, 4, 2), preset)
