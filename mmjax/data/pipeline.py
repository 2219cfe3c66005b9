"""From records to batches: order, decoding, template, padding; bad records replaced and counted.

``batch_at(step)`` is a pure function of the step, so resuming needs no state: the global batch is
rows ``step * batch_size ...`` of the order, and each host takes its share of these rows.
"""

import dataclasses
import hashlib
import math
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Literal

import grain
import numpy as np

from mmjax.data.batch import Batch, media_places, stack_padded, with_media, with_slot
from mmjax.data.example import BadSample, Example, Media
from mmjax.data.features import FeatureStore, frame_keys
from mmjax.data.images import check_preparation, prepare
from mmjax.data.in_words import Word, words
from mmjax.data.mixture import weighted_order
from mmjax.data.patience import patient
from mmjax.data.planning import BucketedOrder, PackedOrder, measured
from mmjax.data.sequence import (
    PARTS,
    Lengths,
    Overlong,
    assemble,
    assemble_packed,
    check_packable,
    fit,
    is_within,
)
from mmjax.data.sources import Source
from mmjax.data.templates import Encoded, Template
from mmjax.data.tokenizer import Tokenizer
from mmjax.data.video import prepare_video
from mmjax.data.workers import reading

_ATTEMPTS = 32  # replacements tried for one row
FRAME_CHOICES = ("first", "random")
_MIN_BAD = 100  # bad records that any data set may have, unless they are more than half of it


class Pipeline:
    """Batches of one source through one template.

    Attributes:
      source: as given.
      tokenizer: as given.
      lengths: as given.
      num_frames: as given.
      weights: as given; empty if none are.
      max_bad: how many records may be bad.
      quarantine: bad and overlong records met so far, each once, as ``{source, row, id, reason}``;
        and ``step``, counted from 1, of the first batch that needed them.
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
        pictures: int = 1,
        preparation: str = "clip",
        num_frames: int = 0,
        frame_choice: Literal["first", "random"] | None = None,
        features: FeatureStore | None = None,
        weights: Mapping[str, float] | None = None,
        overlong: Literal["drop", "truncate_text", "error"] = "drop",
        max_bad_fraction: float = 1e-3,
        shuffle: bool = True,
        generating: bool = False,
        pack: bool = False,
        buckets: Collection[Lengths] = (),
        host: tuple[int, int] = (0, 1),
        num_workers: int | None = None,
        patience: float = 60.0,
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
          pictures: places for them in each row (f), and for the frames of videos; rows with fewer
            are filled up, rows with more are overlong.
          preparation: how frames are made of pictures, see `mmjax.data.images`. What ``crop`` keeps
            depends on ``seed`` and the row's position in the order alone; it is for training.
          num_frames: that are shown of each video; 0 where there are none.
          frame_choice: which, see `mmjax.data.frames`: the first of each segment, or a random one,
            which depends on what a crop does. By default random in training, but for stored
            features.
          features: in place of frames.
          weights: sampling weight of each kind of record, see `weighted_order`; None takes all
            alike.
          overlong: what happens to a record that is too long: replaced and counted, its plain text
            cut, or an error.
          max_bad_fraction: of the source's records; when more are bad, training stops (see
            `bad_limit`).
          shuffle: False takes records in order, again and again.
          generating: encode prompts without answers.
          pack: whether a row of `batch_at` holds as many records as fit, see
            `mmjax.data.planning`; a picture that cannot be read then leaves its place in the row
            empty. All texts are encoded once at the start, to know their lengths.
          buckets: lengths below ``lengths``, shortest first: `batch_at` pads a batch to the first
            of them that all of its rows fit, rows of like length meet in a batch. Encodes all texts
            at the start, too.
          host: (index, count); this host's rows are the index-th of count equal shares of each
            batch.
          num_workers: threads that read ahead; None = one for each core, at most 16. Batches do not
            depend on it.
          patience: seconds without a batch after which it is said what is being read, see
            `mmjax.data.patience`.
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
        check_preparation(preparation)
        if preparation == "crop" and (generating or features is not None):
            raise ValueError(
                "preparation 'crop' shows another part of a picture each time: it does not go with "
                "stored features, nor with questions to be scored (give 'clip' or 'squash')"
            )
        if frame_choice not in (None, *FRAME_CHOICES):
            raise ValueError(
                f"frame_choice must be {' or '.join(FRAME_CHOICES)}, got {frame_choice!r}"
            )
        if num_frames and (preparation == "crop" or (frame_choice == "random" and features)):
            raise ValueError(
                "videos are shown whole and, from stored features, by the first frames of their "
                "segments: give another preparation than 'crop', and no frame_choice='random'"
            )
        self.source, self.tokenizer = source, tokenizer
        self._template, self.lengths = template, lengths
        self._batch_size, self._image_size, self._features = batch_size, image_size, features
        self._pictures, self._preparation, self._seed = pictures, preparation, seed
        self.num_frames, self.weights = num_frames, dict(weights or {})
        by_chance = "first" if generating or features is not None else "random"
        self._draws_frames = (frame_choice or by_chance) == "random"
        self._overlong, self._generating = overlong, generating
        self._host, self._patience = host, patience
        self._read = reading(num_workers)
        self._reading: dict[str, tuple[int, float]] = {}  # thread -> record, since when
        in_order = grain.MapDataset.range(len(source)).repeat()
        self._order = weighted_order(source, weights, seed) if shuffle else in_order
        if generating and (pack or buckets):
            raise ValueError("questions to be scored are neither packed nor put into buckets")
        if pack and buckets:
            raise ValueError("packed rows are full: give pack or buckets, not both")
        self.max_bad = bad_limit(len(source), max_bad_fraction)
        self._bad: dict[int, dict[str, str | int]] = {}
        self._others: dict[
            int, int
        ] = {}  # position -> the record that was shown in place of its own
        self._lock = threading.Lock()
        self._packed: PackedOrder | None = None
        self._bucketed: BucketedOrder | None = None
        self._buckets = [*buckets, lengths]
        if pack:
            sizes = measured(len(source), self._fitted, num_frames, check_packable)
            self._packed = PackedOrder(self._order, sizes, lengths.target, pictures)
        elif buckets:
            sizes = measured(len(source), self._fitted, num_frames)
            self._bucketed = BucketedOrder(self._order, sizes, self._buckets, batch_size, seed)

    def _fitted(self, record: int) -> Encoded | None:
        """A record's texts, cut to the lengths; None for what cannot be used, which goes into
        quarantine."""
        example, _, fitted = self.examine(record, lambda media: None)
        if fitted is None and self._overlong == "error" and example is not None:
            self._load(example, record, None)  # raises what is wrong
        self._check_bad()
        return fitted

    def _check_bad(self) -> None:
        if len(self._bad) > self.max_bad:
            raise self._too_bad(
                f"more than {self.max_bad} of {len(self.source)} records cannot be used"
            )

    def _places(self, row: int) -> list[int]:
        """The places in the order that the row of a batch shows."""
        if self._packed is not None:
            return self._packed[row]
        if self._bucketed is not None:
            step, at = divmod(row, self._batch_size)
            return [self._bucketed[step][0][at]]
        return [row]

    def order_hash(self, num_steps: int) -> str:
        """Of the numbers of the records that make up the first batches, up to 4096 rows; equal for
        equal sources, seeds and weights."""
        rows = range(min(num_steps * self._batch_size, 4096))
        places = [place for row in rows for place in self._places(row)]
        numbers = np.array([self._order[place] for place in places], np.int64)
        return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]

    def recall(self, quarantine: Iterable[Mapping[str, str | int]]) -> None:
        """Puts records into quarantine that were met before, by a run that now goes on."""
        with self._lock:
            for entry in quarantine:
                self._bad[entry["row"]] = dict(entry)

    @property
    def quarantine(self) -> list[dict[str, str | int]]:
        with self._lock:
            return list(self._bad.values())

    def drawn(self, step: int) -> dict[str, int]:
        """How many of this host's rows of a batch that it has given came from records of each kind;
        empty without weights."""
        if not self.weights:
            return {}
        counts: dict[str, int] = {}
        rows = self._share(step, self._batch_size)
        for position in (place for row in rows for place in self._places(row)):
            with self._lock:
                record = self._others.get(position)
            kind = self.source.kinds[self._order[position] if record is None else record]
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def batch_at(self, step: int) -> Batch:
        """This host's rows of the global batch of ``step``, counted from 0.

        Raises:
          ValueError: too many records are bad; lists them.
        """
        numbers = self._share(step, self._batch_size)
        if self._packed is not None:
            return self._packed_batch([self._packed[row] for row in numbers], numbers)
        lengths = self.lengths if self._bucketed is None else self._buckets[self._bucketed[step][1]]
        places = [place for row in numbers for place in self._places(row)]
        return self._batch([self._replaced(place, lengths) for place in places], numbers, lengths)

    def _packed_batch(self, groups: list[list[int]], row_id: range) -> Batch:
        """What cannot be used leaves its place empty; of a row without any, another record is
        shown."""
        rows = []
        for places in groups:
            loaded = [self._loaded_or_reason(self._order[place], place) for place in places]
            usable = [row for row in loaded if isinstance(row, _Row)]
            self._check_bad()
            rows.append(usable or [self._replaced(places[0], self.lengths)])
        encoded = [[row.encoded for row in group] for group in rows]
        target = assemble_packed(encoded, self.lengths.target, self.tokenizer.pad_id)
        batch = Batch(np.array(row_id, np.int64), target)
        whole = [
            dataclasses.replace(group[0], media=tuple(m for one in group for m in one.media))
            for group in encoded
        ]
        shown = [
            None
            if group[0].pictures is None
            else np.concatenate([row.pictures for row in group])
            if self._features is not None
            else [picture for row in group for picture in row.pictures]
            for group in rows
        ]
        return self._shown(batch, whole, shown)

    def iterate(self, start_step: int = 0, num_steps: int | None = None) -> Iterator[Batch]:
        """``batch_at(start_step)`` and on, read ahead by threads; endless without ``num_steps``.

        Raises:
          Stalled: they do not come back, see `mmjax.data.patience`.
        """
        stop = 2**40 if num_steps is None else start_step + num_steps
        steps = grain.MapDataset.range(start_step, stop).map(self.batch_at)
        return self._patiently(steps)

    def epoch(self, batch_size: int) -> Iterator[tuple[Batch, list[Example | None]]]:
        """All records once, in order, for evaluation: this host's rows of each batch of
        ``batch_size``, and the examples of these rows.

        Bad records are not replaced: copies of another row stand in their places, as they do after
        the last record. Copies' examples are None; look into `quarantine` afterwards. ``row_id`` is
        the number of the record that a row shows. All hosts give equally many batches, or none if
        no record can be used.

        Raises:
          ValueError: pictures are cropped at random, which is for training.
        """
        if self._preparation == "crop":
            raise ValueError(
                f"{self.source.name} is to be evaluated: preparation must be clip or squash"
            )
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
        for record, row in zip(records, self._patiently(rows), strict=True):
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

    def _patiently(self, items: grain.MapDataset) -> Iterator:
        return patient(iter(items.to_iter_dataset(self._read)), self._patience, self._in_progress)

    def _in_progress(self) -> str:
        """What the threads read, those that have been at it for long first."""
        with self._lock:
            longest = sorted(self._reading.items(), key=lambda each: each[1][1])
        now = time.monotonic()
        lines = [
            f"record {record} for {now - since:.0f} s ({thread})"
            for thread, (record, since) in longest[:4]
        ]
        return f"of {self.source.name}, threads read {', '.join(lines) or 'nothing'}"

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

    def _replaced(self, position: int, lengths: Lengths) -> "_Row":
        """The row at ``position`` of the order, or the first good one of a fixed list of others
        that fits ``lengths``."""
        for attempt in range(_ATTEMPTS):
            other = zlib.crc32(f"{position}/{attempt}".encode())
            record = self._order[other if attempt else position]
            row = self._loaded_or_reason(record, position)
            if isinstance(row, _Row) and is_within(row.encoded, lengths):
                if attempt:
                    with self._lock:
                        self._others[position] = record
                return row
            self._check_bad()
        raise self._too_bad(f"{_ATTEMPTS} records drawn for one row, and none can be used")

    def _loaded_or_reason(self, record: int, position: int | None = None) -> "_Row | BadSample":
        """The row of a record, wanted at ``position`` of the order, or why there is none (which is
        then in quarantine)."""
        example, thread = None, threading.current_thread().name
        with self._lock:
            self._reading[thread] = record, time.monotonic()
        try:
            example = self.source[record]
            return self._load(example, record, position)
        except BadSample as error:
            if self._overlong == "error" and isinstance(error, Overlong):
                raise
            step = None if position is None else position // self._batch_size + 1
            self._note(record, example, error, step)
            return error
        finally:
            with self._lock:
                self._reading.pop(thread)

    def _note(
        self, record: int, example: Example | None, error: BadSample, step: int | None = None
    ) -> None:
        name = "" if example is None else example.id
        reason = error.reason if error.source == name else str(error)
        entry = {"source": self.source.name, "row": record, "id": name, "reason": reason}
        with self._lock:
            known = self._bad.setdefault(record, entry)
            if step is not None:  # threads read ahead, and not in order
                known["step"] = min(step, known.get("step", step))

    def examine(
        self, record: int, look: Callable[[Media], None]
    ) -> tuple[Example | None, Encoded | None, Encoded | None]:
        """A record as far as it gets: (itself, encoded at full length, cut to the lengths).

        What is wrong with it, be it the pictures, for which ``look`` raises `BadSample`, goes into
        `quarantine`.
        """
        example = encoded = None
        try:
            example = self.source[record]
            encoded = self._template.encode(example, self.tokenizer, generating=self._generating)
            fitted = self._fit(encoded, example)
            for media in fitted.media:
                look(media)
        except BadSample as error:
            self._note(record, example, error)
            return example, encoded, None
        return example, encoded, fitted

    def in_words(self, encoded: Encoded) -> dict[str, list["Word"]]:
        """The texts of a record that fits, by their names."""
        texts = zip(PARTS, assemble([encoded], self.lengths, self.tokenizer.pad_id), strict=True)
        return {part: words(text, 0, self.tokenizer) for part, text in texts if text is not None}

    def _fit(self, encoded: Encoded, example: Example) -> Encoded:
        if encoded.media and not self._sees:
            raise ValueError(
                f"{self.source.name} has pictures: give image_size, or features computed before"
            )
        if not self.num_frames and any(media.is_video for media in encoded.media):
            raise ValueError(
                f"{self.source.name} has videos: say how many frames of each in data.num_frames"
            )
        return fit(
            encoded,
            self.lengths,
            name=example.id,
            truncate_text=self._overlong == "truncate_text",
            pictures=self._pictures,
            num_frames=self.num_frames,
        )

    @property
    def _sees(self) -> bool:
        """Whether rows have places for pictures."""
        return self._image_size is not None or self._features is not None

    def _load(self, example: Example, record: int, position: int | None) -> "_Row":
        encoded = self._template.encode(example, self.tokenizer, generating=self._generating)
        encoded = self._fit(encoded, example)
        if not self._sees:
            return _Row(example, encoded, None)
        if self._features is not None:
            keys = [key for media in encoded.media for key in frame_keys(media, self.num_frames)]
            return _Row(example, encoded, self._features[keys])
        size, how = self._image_size, self._preparation
        draw = np.random.default_rng([self._seed, record if position is None else position])
        of_video = dict(count=self.num_frames, draw=draw if self._draws_frames else None)
        frames = [
            prepare_video(media, size, how, **of_video)
            if media.is_video
            else prepare(media, size, how, draw)
            for media in encoded.media
        ]
        return _Row(example, encoded, frames)

    def _batch(
        self, rows: list["_Row"], row_id: range | list[int], lengths: Lengths | None = None
    ) -> Batch:
        encoded = self._template.together([row.encoded for row in rows])
        texts = assemble(encoded, lengths or self.lengths, self.tokenizer.pad_id)
        prefix, request, target = texts
        batch = Batch(np.array(row_id, np.int64), target, prefix, request)
        return self._shown(batch, encoded, [row.pictures for row in rows])

    def _shown(
        self, batch: Batch, encoded: list[Encoded], pictures: list[list[np.ndarray] | np.ndarray]
    ) -> Batch:
        """``batch`` with the pictures of its rows."""
        if not self._sees or not self._pictures:
            return batch
        batch = self._with_media_slots(batch, encoded)
        if self._features is None:
            return with_media(batch, pictures, self._pictures, size=self._image_size)
        batch = dataclasses.replace(batch, features=stack_padded(pictures, self._pictures))
        counts = [[self.num_frames if m.is_video else None for m in row.media] for row in encoded]
        item, time = media_places(counts, self._pictures)
        return dataclasses.replace(batch, frame_item=item, frame_time=time)

    def _with_media_slots(self, batch: Batch, rows: list[Encoded]) -> Batch:
        """``batch`` with slots for pictures even if no row here has one: its structure must not
        depend on which rows happen to meet, on this host or another one."""
        if all(row.media for row in rows):
            return batch
        home = "target" if batch.prefix is None else "prefix"
        for part in PARTS:
            if part != home and "media" in getattr(getattr(batch, part), "slots", ()):
                raise ValueError(
                    f"{type(self._template).__name__} puts pictures into the {part}: a template "
                    "that takes rows without pictures must keep them in the prefix, or, where it "
                    "has none, in the target (see `mmjax.data.templates.Template`)"
                )
        return dataclasses.replace(batch, **{home: with_slot(getattr(batch, home), "media")})

    def _too_bad(self, what: str) -> ValueError:
        bad = self.quarantine
        lines = [f"record {entry['row']} ({entry['id']}): {entry['reason']}" for entry in bad[:20]]
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        return ValueError(
            f"{self.source.name}: {what}. Is a folder missing, or are the lengths too short?\n  "
            + "\n  ".join(lines)
            + more
        )


def bad_limit(num_records: int, fraction: float) -> int:
    """How many records of a source may be bad: ``fraction`` of them, or 100, but no more than half
    of a small source."""
    return max(math.ceil(fraction * num_records), min(_MIN_BAD, num_records // 2))


@dataclasses.dataclass(frozen=True)
class _Row:
    """A loaded record; pictures are uint8[H W 3] of each, of videos uint8[n H W 3]; or features
    [n ...] of all of them; or None."""

    example: Example
    encoded: Encoded
    pictures: list[np.ndarray] | np.ndarray | None
