"""Where a Q-Former looks: the attention that Cheetor's synthetic pairs are made by (its reference,
section 8), from the weights of a BLIP-2.

    --attention "blip-2?weights=asset:tiny/blip2"
"""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.blip2 import Blip2, Blip2Config
from mmjax.nn.param import merge, specs
from mmjax.train.report import params_hash


class Blip2Attention:
    """See `mmjax.data.differences.interfaces.Attention`."""

    def __init__(self, weights: str):
        """
        Args:
          weights: a BLIP-2 of Hugging Face, an imported one or an imported system that has one, or
            ``asset:tiny/blip2``.

        Raises:
          SourceError, ConversionError: it is none.
        """
        from conversion.weights import config_of, load_weights

        config = config_of(weights, "blip2", Blip2Config)
        model = Blip2(config)
        below = {f"blip2.{path}": spec for path, spec in specs(model).items()}
        loaded = load_weights({"blip2": weights}, below)
        self._params = {path.removeprefix("blip2."): jnp.asarray(x) for path, x in loaded.items()}
        grid = config.vision.grid

        @jax.jit
        def look(params, frames):
            read = merge(model, params)
            weights = read.attention_map(read.image_features(frames, jnp.float32))
            return weights[:, 1:].reshape(-1, grid, grid)  # without the class token

        self._look = look
        self.image_size = config.vision.image_size
        self.identity = {"parameters": params_hash(self._params)}

    def __call__(self, frames: np.ndarray) -> np.ndarray:  # uint8[n s s 3] -> f32[n g g]
        return np.asarray(self._look(self._params, frames))
