"""From records to batches: order, decoding, template, padding; bad records replaced and counted.

``batch_at(step)`` is a pure function of the step, so resuming needs no state: the global batch is
rows ``step * batch_size ...`` of the order, and each host takes its share of these rows.
"""

import dataclasses
import math
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Literal

import grain
import numpy as np

from mmjax.data.batch import Batch, Sequence
from mmjax.data.example import BadSample, Example
from mmjax.data.features import FeatureStore
from mmjax.data.images import clip_preprocess, load_image
from mmjax.data.mixture import weighted_order
from mmjax.data.sequence import PARTS, Lengths, Overlong, assemble, fit
from mmjax.data.sources import Source
from mmjax.data.templates import Encoded, Template
from mmjax.data.tokenizer import Tokenizer

_ATTEMPTS = 32  # replacements tried for one row
_MIN_BAD = 100  # bad records that any data set may have
_READ_OPTIONS = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)


class Pipeline:
    """Batches of one source through one template.

    Attributes:
      source: as given.
      tokenizer: as given.
      quarantine: bad and overlong records met so far, as ``{source, row, id, reason}``, each once.
    """

    def __init__(
        self,
        source: Source,
        template: Template,
        tokenizer: Tokenizer,
        lengths: Lengths,
        batch_size: int,
        seed: int,
        *,
        image_size: int | None = None,
        features: FeatureStore | None = None,
        weights: Mapping[str, float] | None = None,
        overlong: Literal["drop", "truncate_text", "error"] = "drop",
        max_bad_fraction: float = 1e-3,
        shuffle: bool = True,
        generating: bool = False,
        host: tuple[int, int] = (0, 1),
    ):
        """
        Args:
          source: the records.
          template: makes segments of them.
          tokenizer: its tokens.
          lengths: static lengths of the texts.
          batch_size: rows of the global batch, over all hosts.
          seed: of the order.
          image_size: side of the square frames; needed for pictures unless ``features`` are given.
          features: in place of frames.
          weights: sampling weight of each kind of record, see `weighted_order`; None takes all
            alike.
          overlong: what happens to a record that is too long: replaced and counted, its plain text
            cut, or an error.
          max_bad_fraction: of the source's records; when more are bad (and more than 100), training
            stops.
          shuffle: False takes records in order, again and again.
          generating: encode prompts without answers.
          host: (index, count); this host's rows are the index-th of count equal shares of each
            batch.
        """
        index, count = host
        if batch_size % count or not 0 <= index < count:
            raise ValueError(
                f"a batch of {batch_size} rows over hosts: cannot be host {index} of {count}"
            )
        if overlong not in ("drop", "truncate_text", "error"):
            raise ValueError(
                f"overlong must be 'drop', 'truncate_text' or 'error', got {overlong!r}"
            )
        if weights is not None and not shuffle:
            raise ValueError("sampling weights need shuffle=True")
        self.source, self.tokenizer = source, tokenizer
        self._template, self._lengths = template, lengths
        self._batch_size, self._image_size, self._features = batch_size, image_size, features
        self._overlong, self._generating = overlong, generating
        self._host = host
        in_order = grain.MapDataset.range(len(source)).repeat()
        self._order = weighted_order(source, weights, seed) if shuffle else in_order
        self._max_bad = max(_MIN_BAD, math.ceil(max_bad_fraction * len(source)))
        self._bad: dict[int, dict[str, str | int]] = {}
        self._lock = threading.Lock()

    @property
    def quarantine(self) -> list[dict[str, str | int]]:
        with self._lock:
            return list(self._bad.values())

    def batch_at(self, step: int) -> Batch:
        """This host's rows of the global batch of ``step``, counted from 0.

        Raises:
          RuntimeError: too many records are bad; lists them.
        """
        positions = self._share(step, self._batch_size)
        return self._batch([self._replaced(position) for position in positions], positions)

    def iterate(self, start_step: int = 0, num_steps: int | None = None) -> Iterator[Batch]:
        """``batch_at(start_step)`` and on, read ahead by threads; endless without ``num_steps``."""
        stop = 2**40 if num_steps is None else start_step + num_steps
        return iter(
            grain.MapDataset.range(start_step, stop)
            .map(self.batch_at)
            .to_iter_dataset(_READ_OPTIONS)
        )

    def epoch(self, batch_size: int) -> Iterator[tuple[Batch, list[Example | None]]]:
        """All records once, in order, for evaluation: this host's rows of each batch of
        ``batch_size``, and the examples of these rows.

        Bad records are not replaced: copies of another row stand in their places, as they do after
        the last record. Copies' examples are None; look into `quarantine` afterwards. ``row_id`` is
        the number of the record that a row shows. All hosts give equally many batches, or none if
        no record can be used.
        """
        number = len(self.source)
        beyond = BadSample(self.source.name, None, "after the last record")
        records = [
            record
            for step in range(math.ceil(number / batch_size))
            for record in self._share(step, batch_size)
        ]
        rows = grain.MapDataset.range(len(records)).map(
            lambda i: self._loaded_or_reason(records[i]) if records[i] < number else beyond
        )
        shown, waiting = None, []  # shown: the last good row so far, with its record
        for record, row in zip(records, rows.to_iter_dataset(_READ_OPTIONS), strict=True):
            waiting.append((record, row) if isinstance(row, _Row) else None)
            if len(waiting) < batch_size // self._host[1]:
                continue
            shown = next(filter(None, reversed(waiting)), shown) or self._first_good()
            if shown is None:
                return
            filled = [row or shown for row in waiting]
            batch = self._batch([row for _, row in filled], [record for record, _ in filled])
            yield batch, [row and row[1].example for row in waiting]
            waiting = []

    def _share(self, step: int, batch_size: int) -> range:
        """Positions of this host's rows of the ``step``-th batch."""
        index, count = self._host
        rows = batch_size // count
        first = step * batch_size + index * rows
        return range(first, first + rows)

    def _first_good(self) -> "tuple[int, _Row] | None":
        for record in range(len(self.source)):
            row = self._loaded_or_reason(record)
            if isinstance(row, _Row):
                return record, row
        return None

    def _replaced(self, position: int) -> "_Row":
        """The row at ``position`` of the order, or the first good one of a fixed list of others."""
        for attempt in range(_ATTEMPTS):
            other = zlib.crc32(f"{position}/{attempt}".encode())
            record = self._order[other if attempt else position]
            row = self._loaded_or_reason(record)
            if isinstance(row, _Row):
                return row
            if len(self._bad) > self._max_bad:
                raise self._too_bad(
                    f"more than {self._max_bad} of {len(self.source)} records cannot be used"
                )
        raise self._too_bad(f"{_ATTEMPTS} records drawn for one row, and none can be used")

    def _loaded_or_reason(self, record: int) -> "_Row | BadSample":
        """The row of a record, or why there is none (which is then in quarantine)."""
        example = None
        try:
            example = self.source[record]
            return self._load(example)
        except BadSample as error:
            if self._overlong == "error" and isinstance(error, Overlong):
                raise
            name = "" if example is None else example.id
            reason = error.reason if error.source == name else str(error)
            entry = {"source": self.source.name, "row": record, "id": name, "reason": reason}
            with self._lock:
                self._bad.setdefault(record, entry)
            return error

    def _load(self, example: Example) -> "_Row":
        encoded = self._template.encode(example, self.tokenizer, generating=self._generating)
        truncate = self._overlong == "truncate_text"
        encoded = fit(encoded, self._lengths, name=example.id, truncate_text=truncate)
        if not encoded.media:
            return _Row(example, encoded, None)
        if self._features is not None:
            return _Row(example, encoded, self._features[[media.key for media in encoded.media]])
        if self._image_size is None:
            raise ValueError(
                f"{self.source.name} has pictures: give image_size, or features computed before"
            )
        frames = [clip_preprocess(load_image(media), self._image_size) for media in encoded.media]
        return _Row(example, encoded, np.stack(frames))

    def _batch(self, rows: list["_Row"], row_id: range | list[int]) -> Batch:
        encoded = [row.encoded for row in rows]
        prefix, request, target = assemble(encoded, self._lengths, self.tokenizer.pad_id)
        batch = Batch(np.array(row_id, np.int64), target, prefix, request)
        if rows[0].pictures is None:
            return batch
        pictures = np.stack([row.pictures for row in rows])  # [b f ...]
        if self._features is not None:
            return dataclasses.replace(batch, features=pictures)
        item = np.tile(np.arange(pictures.shape[1], dtype=np.int32), (len(rows), 1))
        return dataclasses.replace(
            batch, frames=pictures, frame_item=item, frame_time=np.full_like(item, -1)
        )

    def _too_bad(self, what: str) -> RuntimeError:
        bad = self.quarantine
        lines = [f"record {entry['row']} ({entry['id']}): {entry['reason']}" for entry in bad[:20]]
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        return RuntimeError(
            f"{self.source.name}: {what}. Is a folder missing, or are the lengths too short?\n  "
            + "\n  ".join(lines)
            + more
        )


@dataclasses.dataclass(frozen=True)
class _Row:
    """A loaded record; pictures are frames uint8[f H W 3], features [f ...], or None."""

    example: Example
    encoded: Encoded
    pictures: np.ndarray | None


def describe(batch: Batch, row: int, tokenizer: Tokenizer) -> str:
    """One row for people to read: tokens to be predicted in brackets, slots by name, no padding.

    prefix   <s> image : <media 0> what shape is present ?
    request  <request 0>
    target   <response 0> <response 1> answer : [circle] [</s>]
    """
    lines = [f"row {int(batch.row_id[row])}"]
    for part in PARTS:
        sequence = getattr(batch, part)
        if sequence is not None:
            lines.append(f"{part:<9}{' '.join(_words(sequence, row, tokenizer))}")
    return "\n".join(lines)


def _words(sequence: Sequence, row: int, tokenizer: Tokenizer) -> list[str]:
    tokens, segments, weights = (
        np.asarray(values)[row] for values in (sequence.tokens, sequence.segments, sequence.weights)
    )
    slots = {name: np.asarray(rows)[row] for name, rows in sequence.slots.items()}
    words = []
    for t in np.flatnonzero(segments):
        slot = next((f"<{name} {rows[t]}>" for name, rows in slots.items() if rows[t] >= 0), None)
        word = tokenizer.token(tokens[t]) if slot is None else slot
        weight = weights[t - 1] if t else 0.0
        words.append(f"[{word}]" if weight == 1 else f"[{word} x{weight:g}]" if weight else word)
    return words
