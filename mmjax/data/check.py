"""Looks at all records of a source before training does: what is bad, how long, how it looks."""

import collections
import dataclasses
import threading

import grain
import numpy as np

from mmjax.data.example import BadSample, Example, Media
from mmjax.data.features import FeatureStore, frame_keys
from mmjax.data.images import load_image
from mmjax.data.in_words import Word
from mmjax.data.pipeline import Pipeline
from mmjax.data.sequence import PARTS, Lengths
from mmjax.data.video import prepare_video
from mmjax.data.workers import reading

LENGTH_HEAD = ("tokens", "50 %", "90 %", "99 %", "longest", "limit")


class Pictures:
    """Which pictures can be used; each is decoded once, however many records show it."""

    def __init__(self, features: FeatureStore | None):
        """``features`` stand for the pictures that are in the store."""
        self._features = features
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def check(self, media: Media, num_frames: int = 0) -> None:
        """Raises BadSample where a `Pipeline` of as many frames of each video would."""
        with self._lock:
            reason = self._reasons.get(media.key)
        if reason is None:
            reason = self._look(media, num_frames)
            with self._lock:
                self._reasons[media.key] = reason
        if reason:
            raise BadSample(media.key, None, reason)

    def _look(self, media: Media, num_frames: int) -> str:
        """Why it cannot be used, or nothing."""
        try:
            if self._features is not None:
                self._features[frame_keys(media, num_frames)]
            elif media.is_video:
                prepare_video(media, 8, count=num_frames)
            else:
                load_image(media)
        except BadSample as error:
            return error.reason if error.source == media.key else str(error)
        return ""


@dataclasses.dataclass(frozen=True)
class CheckedSample:
    """One record as a model will see it: ``words`` of each text, by its name."""

    example: Example
    words: dict[str, list[Word]]


@dataclasses.dataclass(frozen=True)
class SourceCheck:
    """What was found.

    Attributes:
      name: the source's.
      kinds: kind -> number of records.
      bad: ``{source, row, id, reason}`` of each bad or overlong record, in order.
      limit: how many may be bad before training stops.
      tokens: text -> the number of tokens of each record that could be encoded, sorted.
      lengths: the configured ones.
      num_pictures: that the records show.
      samples: good records, spread over the source.
      notices: the source's.
    """

    name: str
    kinds: dict[str, int]
    bad: list[dict[str, str | int]]
    limit: int
    tokens: dict[str, np.ndarray]
    lengths: Lengths
    num_pictures: int
    samples: list[CheckedSample]
    notices: tuple[str, ...] = ()

    @property
    def num_records(self) -> int:
        return sum(self.kinds.values())

    @property
    def is_good(self) -> bool:
        return len(self.bad) <= self.limit and len(self.bad) < self.num_records

    def counts(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.kinds.items()) if kind)
        return (
            f"{self.name}: {self.num_records:,} records{f' ({kinds})' if kinds else ''}, "
            f"{self.num_pictures:,} pictures; {len(self.bad):,} cannot be used "
            f"(training stops above {self.limit:,})"
        )

    def length_rows(self) -> list[list[str]]:
        """Rows under `LENGTH_HEAD`."""
        rows = []
        for part, count in self.tokens.items():
            figures = [count[min(len(count) - 1, len(count) * p // 100)] for p in (50, 90, 99)]
            limit = getattr(self.lengths, part)
            rows.append([part, *(str(n) for n in (*figures, count[-1], limit))])
        return rows


def check_source(pipeline: Pipeline, pictures: Pictures, *, num_samples: int = 12) -> SourceCheck:
    """Goes through all records of ``pipeline.source`` once, with its template and lengths."""
    source = pipeline.source
    tokens, samples, shown = collections.defaultdict(list), [], set()
    wanted = set(np.linspace(0, len(source) - 1, num_samples, dtype=int).tolist())

    def look(record: int) -> tuple[set[str], dict[str, int], CheckedSample | None]:
        example, encoded, fitted = pipeline.examine(
            record, lambda media: pictures.check(media, pipeline.num_frames)
        )
        texts = {part: getattr(encoded, part, None) for part in PARTS}
        counts = {
            part: sum(len(segment.ids) for segment in segments)
            for part, segments in texts.items()
            if segments is not None
        }
        keys = {media.key for media in example.media} if example else set()
        if fitted is None or record not in wanted:
            return keys, counts, None
        return keys, counts, CheckedSample(example, pipeline.in_words(fitted))

    records = grain.MapDataset.range(len(source)).map(look)
    for keys, counts, sample in records.to_iter_dataset(reading()):
        shown |= keys
        for part, count in counts.items():
            tokens[part].append(count)
        samples += [] if sample is None else [sample]
    return SourceCheck(
        name=source.name,
        kinds=dict(collections.Counter(source.kinds)),
        bad=sorted(pipeline.quarantine, key=lambda entry: entry["row"]),
        limit=pipeline.max_bad,
        tokens={part: np.sort(tokens[part]) for part in PARTS if part in tokens},
        lengths=pipeline.lengths,
        num_pictures=len(shown),
        samples=samples,
        notices=tuple(getattr(source, "notices", ())),
    )
