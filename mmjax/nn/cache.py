"""Keys and values that are kept: of a text that another continues, and of a text being generated.

Letters: ``l`` layers, ``b`` prompts, ``c`` copies of each (beams, or several answers), ``s`` places
of the prompts, ``r`` of what is generated, ``k`` key heads, ``h`` head dimension.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.nn.apart import Stacked, each


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """What a finished piece of text leaves for its continuations.

    Attributes:
      keys, values: [l b s k h], rotary positions already applied.
      segments: i32[b s]; 0 = padding.
    """

    keys: Stacked
    values: Stacked
    segments: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The state of generation: all there is to know about the rows so far. Opaque to
    `mmjax.generate`.

    The rows are b x c: copies of a prompt share its keys and values, which are never moved, and
    have what they generate to themselves.

    Attributes:
      prompt: keys and values [l b k s h], heads first: so products with them need no transposed
        copy.
      keys, values: [l b*c k r h] of what is generated, r = all places there will ever be.
      position: i32[b*c], position of the next token of each row.
      count: i32[], tokens generated so far, the same for all rows.
      seen: what cross-attention looks at [l b s k h], the same for every new token; None = there is
        none.
    """

    prompt: KeyValues
    keys: Stacked
    values: Stacked
    position: jax.Array
    count: jax.Array
    seen: KeyValues | None = None

    @classmethod
    def start(
        cls,
        parts: list[KeyValues],
        *,
        position: jax.Array,
        room: int,
        seen: KeyValues | None = None,
    ) -> "Cache":
        """The parts of the prompts one after the other, and ``room`` free places."""

        def join(*parts: jax.Array) -> jax.Array:
            return jnp.concatenate(parts, axis=1).swapaxes(1, 2)

        def free(keys: jax.Array) -> jax.Array:
            b, k, _, h = keys.shape
            return jnp.zeros((b, k, room, h), keys.dtype)

        keys = each(join, *(part.keys for part in parts))
        values = each(join, *(part.values for part in parts))
        segments = jnp.concatenate([part.segments for part in parts], axis=1)
        prompt = KeyValues(keys, values, segments)
        return cls(prompt, each(free, keys), each(free, values), position, jnp.int32(0), seen)

    def copies(self, count: int) -> "Cache":
        """The cache of ``count`` rows for each, next to each other."""
        several = lambda x: jnp.repeat(x, count, axis=0)  # noqa: E731
        return dataclasses.replace(
            self,
            keys=each(several, self.keys),
            values=each(several, self.values),
            position=several(self.position),
        )

    def reorder(self, rows: jax.Array) -> "Cache":
        """Row i goes on from what row ``rows[i]``, i32[b*c], has generated to the same prompt."""
        chosen = lambda x: jnp.take(x, rows, axis=0)  # noqa: E731
        return dataclasses.replace(
            self, keys=each(chosen, self.keys), values=each(chosen, self.values)
        )
