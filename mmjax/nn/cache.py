"""Keys and values that are kept: of a text that another continues, and of a text being generated.

Letters: ``l`` layers, ``b`` rows, ``s`` places, ``k`` key heads, ``h`` head dimension.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """What a finished piece of text leaves for its continuations.

    Attributes:
      keys, values: [l b s k h], rotary positions already applied.
      segments: i32[b s]; 0 = padding.
    """

    keys: jax.Array
    values: jax.Array
    segments: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The state of generation: all there is to know about the rows so far. Opaque to
    `mmjax.generate`.

    Attributes:
      keys, values: [l b s k h], s = all places there will ever be; updated in place by decoding.
      segments: i32[b s]; 0 = padding or not yet written.
      position: i32[b], position of the next token of each row.
      end: i32[], place of the next token, the same for all rows: pads of uneven rows stay inside,
        masked.
      seen: what cross-attention looks at, the same for every new token; None = there is none.
    """

    keys: jax.Array
    values: jax.Array
    segments: jax.Array
    position: jax.Array
    end: jax.Array
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
        """The parts one after the other, then ``room`` free places."""

        def join(name: str, axis: int) -> jax.Array:
            x = jnp.concatenate([getattr(part, name) for part in parts], axis)
            return jnp.pad(x, [(0, room if i == axis else 0) for i in range(x.ndim)])

        end = sum(part.segments.shape[1] for part in parts)
        return cls(
            join("keys", 2), join("values", 2), join("segments", 1), position, jnp.int32(end), seen
        )

    def select(self, rows: jax.Array) -> "Cache":
        """The cache of the given rows, i32[b']: reorders and multiplies them, for beams."""
        take = lambda x, axis: jnp.take(x, rows, axis=axis)  # noqa: E731
        seen = self.seen and KeyValues(
            take(self.seen.keys, 1), take(self.seen.values, 1), take(self.seen.segments, 0)
        )
        return Cache(
            take(self.keys, 1),
            take(self.values, 1),
            take(self.segments, 0),
            take(self.position, 0),
            self.end,
            seen,
        )
