"""Decoding, compiled: greedy, multinomial sampling, beam search and beam sampling.

Of a system it uses `System.prefill`, `System.decode`, ``Cache.copies`` and ``Cache.reorder``, and
nothing else.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.batch import Batch
from mmjax.data.sequence import PARTS
from mmjax.generate import beam, sample
from mmjax.generate.config import GenerationConfig
from mmjax.generate.draws import Draws
from mmjax.nn.param import Params, merge
from mmjax.parallel.distributed import fetch
from mmjax.systems.system import System

_log = logging.getLogger(__name__)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """What was said to each of ``b`` prompts, ``r`` answers to each.

    Attributes:
      tokens: i32[b r t], new tokens alone, t = max_new_tokens; pads follow the token that ends an
        answer. Beams come best first.
      scores: f32[b r] of beams: log probability / length ** length_penalty; None otherwise.
    """

    tokens: jax.Array
    scores: jax.Array | None


class Generator:
    """Answers of one system by one set of settings.

    A row's answers depend on its prompt, its seed and the settings: not on its neighbours, on pads
    or on the number of rows.
    """

    def __init__(self, system: System, config: GenerationConfig):
        self.config = config
        self._search = beam if config.num_beams > 1 else sample
        self._system = system
        self._buckets: set[tuple] = set()
        self._whole = jax.jit(self._generate)
        self._begin = jax.jit(self._first)
        self._advance = jax.jit(self._next, donate_argnums=1)

    @property
    def programs(self) -> tuple[Callable, Callable]:
        """(params, batch, seeds, text, draws) -> what there is after the first token; and (params,
        that) -> the same after one more."""
        return self._begin, self._advance

    def __call__(
        self,
        params: Params,
        batch: Batch,
        *,
        seeds: jax.Array | None = None,
        text: jax.Array | None = None,
        draws: Draws | None = None,
    ) -> Generated:
        """One call of a compiled program, without a look at it before its end.

        Args:
          params: of the system.
          batch: the prompts.
          seeds: i32[b], of each row's draws; its ``row_id`` by default.
          text: i32[b s], what repetition and n-gram rules see before the new tokens, right-aligned;
            -1 = nothing. By default nothing (as transformers does with prompts that are
            embeddings), or ``bos_token`` by the older rules.
          draws: each row's settings, where they are not the same for all.
        """
        self._note(batch)
        return self._whole(params, batch, *self._defaults(batch, seeds, text), self._own(draws))

    def stream(
        self,
        params: Params,
        batch: Batch,
        *,
        seeds: jax.Array | None = None,
        text: jax.Array | None = None,
        draws: Draws | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same tokens while they are made: (i32[b r], bool[b r] whether the answer is over with
        them) at a time.

        Raises:
          ValueError: beams are to be searched; which is the best shows at the end.
        """
        if self.config.num_beams > 1:
            raise ValueError(f"num_beams = {self.config.num_beams}: beams cannot be streamed")
        self._note(batch)
        rows = batch.row_id.shape[0]
        begun = self._defaults(batch, seeds, text)
        state = self._begin(params, batch, *begun, self._own(draws))
        for made in range(1, self.config.max_new_tokens + 1):
            is_over = fetch(state.is_over)
            yield fetch(state.tokens).reshape(rows, -1), is_over.reshape(rows, -1)
            if made == self.config.max_new_tokens or is_over.all():
                return
            state = self._advance(params, state)

    def _generate(self, params, batch, seeds, text, draws) -> Generated:
        state = jax.lax.while_loop(
            functools.partial(self._search.goes_on, config=self.config),
            functools.partial(self._next, params),
            self._first(params, batch, seeds, text, draws),
        )
        texts, scores = self._search.finish(state, self.config)
        tokens = texts.reshape(seeds.shape[0], -1, texts.shape[-1])[..., text.shape[1] :]
        return Generated(jnp.where(tokens < 0, self.config.pad_token, tokens), scores)

    def _first(self, params, batch, seeds, text, draws):
        system = merge(self._system, params)
        return self._search.begin(system, batch, text, seeds, self.config, draws)

    def _next(self, params, state):
        return self._search.advance(merge(self._system, params), state, self.config)

    def _defaults(self, batch: Batch, seeds, text) -> tuple[jax.Array, jax.Array]:
        seeds = batch.row_id if seeds is None else seeds
        if text is not None:
            return seeds, text
        if not self.config.is_legacy:
            return seeds, np.zeros((len(seeds), 0), np.int32)
        if self.config.bos_token is None:
            raise ValueError(
                f"rules {self.config.rules!r} begin every text with bos_token: give it, or a text"
            )
        return seeds, np.full((len(seeds), 1), self.config.bos_token, np.int32)

    def _own(self, draws: Draws | None) -> Draws | None:
        config = self.config
        if draws is not None and (config.num_beams > 1 or config.num_return_sequences > 1):
            raise ValueError(
                f"num_beams = {config.num_beams}, num_return_sequences = "
                f"{config.num_return_sequences}: rows have settings of their own only where each "
                "gets one answer without beams"
            )
        return draws

    def _note(self, batch: Batch) -> None:
        """Logs every shape once: each is a program of its own."""
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        if shapes not in self._buckets:
            self._buckets.add(shapes)
            lengths = {
                part: getattr(batch, part).tokens.shape[1]
                for part in PARTS
                if getattr(batch, part) is not None
            }
            _log.info(
                "compiling generation for %d rows of %s tokens and %d new ones",
                len(batch.row_id),
                " + ".join(f"{length} ({part})" for part, length in lengths.items()),
                self.config.max_new_tokens,
            )
