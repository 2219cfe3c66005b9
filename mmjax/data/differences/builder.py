"""Makes a folder of pairs of pictures that differ in one thing; see `interfaces`.

    pairs.jsonl       a pair a line, for the source ``jsonl:``: two pictures, instruction, sentence
    pictures/         the originals, NUMBER.png, and the edited ones, NUMBER-EDIT.png
    outcomes.jsonl    what became of every edit of every picture, in order
    report.json       the counts

It may be killed at any moment: the same command goes on, and ends with the same bytes if the parts
give the same answers to the same questions.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data.differences.interfaces import (
    KINDS,
    Attention,
    Edit,
    Editor,
    Filter,
    Kind,
    Scene,
    Segment,
    Segmenter,
    TextModel,
    Unfit,
)  # fmt: skip
from mmjax.data.differences.report import pair_files, write_results
from mmjax.data.example import BadSample, Media
from mmjax.data.images import load_image
from mmjax.data.outcomes import Report, append_all, figures
from mmjax.data.resumable import ResumableFile, write_bytes
from mmjax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Parts:
    """Who does what; ``filter`` is None where every edited picture is taken."""

    attention: Attention
    segmenter: Segmenter
    text_model: TextModel
    editor: Editor
    filter: Filter | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How pairs are made. The paper gives neither threshold.

    Attributes:
      instruction: what the user says.
      kinds: of the edits; which one is drawn for each, of those that its segment allows.
      edits: of each picture: the first is of the least attended segment, the next of the next.
      max_attention: a segment is left alone if its mean attention is above as many times the mean
        of the picture; None edits the least attended one in any case.
      min_score: edited pictures for which the filter gives less are left out.
      seed: of all choices.
      batch_size: pictures that go through the attention's model at once.
    """

    instruction: str = "Describe the difference between the images"
    kinds: tuple[Kind, ...] = KINDS
    edits: int = 1
    max_attention: float | None = None
    min_score: float | None = None
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self):
        problems = []
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            problems.append(f"no kind of edit {', '.join(unknown)}; there are {', '.join(KINDS)}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            problems.append(f"each kind of edit once, and at least one; got {list(self.kinds)}")
        problems += [
            f"{name} must be at least 1, got {getattr(self, name)}"
            for name in ("edits", "batch_size")
            if getattr(self, name) < 1
        ]
        if problems:
            raise ValueError("\n".join(problems))


@dataclasses.dataclass(frozen=True)
class Original:
    """A picture of the source."""

    media: Media
    caption: str


def build(
    source: Source,
    parts: Parts,
    settings: Settings,
    out: Path,
    *,
    made_by: Mapping[str, Any],
    limit: int | None = None,
) -> Report:
    """Edits every picture of ``source`` once, or as often as ``settings`` say.

    Args:
      source: examples of one picture each; what the assistant says is its caption.
      parts: who does what.
      settings: how.
      out: the folder; a new one, or one that was begun with the same.
      made_by: JSON-able; names the source and the parts.
      limit: take as many of the first pictures only.

    Raises:
      ValueError: the source has no picture, ``out`` holds something else, or too many edits in a
        row failed.
    """
    if (settings.min_score is None) != (parts.filter is None):
        raise ValueError("a filter needs min_score, the least score that is good enough; and back")
    originals, counts = _originals(source, limit)
    out = Path(out)
    outcomes = out / "outcomes.jsonl"
    others = [path for path in out.glob("*") if not path.name.startswith(outcomes.name)]
    if others and not out.joinpath(f"{outcomes.name}.origin.json").exists():
        raise ValueError(
            f"{out} is not empty, and nothing there says what it is made from "
            f"(there is {others[0].name}): give another --out"
        )
    origin = dict(
        made_by=made_by,
        attention=parts.attention.identity,
        settings=dataclasses.asdict(settings),
        pictures=_hash([[each.media.key, each.caption] for each in originals]),
    )
    file = ResumableFile(outcomes, origin)
    was_complete = file.is_complete
    if not was_complete:
        rows = _outcomes(originals, parts, settings, out, start=file.num_lines)
        append_all(file, rows, what="edits", total=len(originals) * settings.edits)
        counts = dict(pictures=len(originals)) | counts
        write_results(out, file, counts, instruction=settings.instruction)
        file.finish()
    return Report.read(out, was_complete=was_complete)


def _originals(source: Source, limit: int | None) -> tuple[list[Original], dict[str, int]]:
    """Every picture once, in order, and counts of what else there is."""
    found: dict[str, Original] = {}
    counts = dict(repeats=0, without_one_picture=0, bad_records=0)
    for record in range(len(source)):
        if limit is not None and len(found) >= limit:
            break
        try:
            example = source[record]
        except BadSample as error:
            counts["bad_records"] += 1
            print(f"left out: {error}", file=sys.stderr)
            continue
        if len(example.media) != 1:
            counts["without_one_picture"] += 1
        elif example.media[0].key in found:
            counts["repeats"] += 1
        else:
            media = example.media[0]
            found[media.key] = Original(media, example.text("assistant"))
    if not found:
        raise ValueError(f"{source.name} has no picture to edit: {figures(counts)}")
    return list(found.values()), counts


def _outcomes(
    originals: Sequence[Original], parts: Parts, settings: Settings, out: Path, *, start: int
) -> Iterator[dict[str, Any]]:
    """What becomes of each edit from number ``start`` on.

    Pictures go through the attention's model in windows that begin at multiples of their size, so
    that a batch is the same after a restart.
    """
    size, edits = settings.batch_size, settings.edits
    for first in range(start // edits // size * size, len(originals), size):
        window = originals[first : first + size]
        frames = [_loaded(original.media) for original in window]
        maps = _attention(parts.attention, frames, size)
        for number, original, frame, attention in zip(
            itertools.count(first), window, frames, maps, strict=False
        ):
            picture = _Picture(number, original, frame, attention, parts, settings)
            for edit in range(max(start - number * edits, 0), edits):
                yield picture.outcome(edit, out)


def _loaded(media: Media) -> np.ndarray | BadSample:  # uint8[H W 3]
    try:
        return np.asarray(load_image(media))
    except BadSample as error:
        return error


def _attention(
    attention: Attention, frames: Sequence[np.ndarray | BadSample], size: int
) -> list[np.ndarray | None]:
    """A map f32[g g] of each picture; None of those that could not be read."""
    side = (attention.image_size, attention.image_size)
    squashed = [
        np.asarray(Image.fromarray(frame).resize(side, Image.Resampling.BICUBIC))
        for frame in frames
        if not isinstance(frame, BadSample)
    ]
    if not squashed:
        return [None] * len(frames)
    padded = np.stack(squashed + squashed[-1:] * (size - len(squashed)))  # always the same shape
    maps = np.asarray(attention(padded), np.float32)
    positive = np.isfinite(maps) & (maps > 0)
    if maps.ndim != 3 or len(maps) != size or not positive.all():
        raise ValueError(
            f"the attention gave {list(maps.shape)} for {list(padded.shape)} frames, "
            f"{positive.mean():.0%} of it finite and above 0; expected all of [{size} g g]"
        )
    given = iter(maps)
    return [None if isinstance(frame, BadSample) else next(given) for frame in frames]


@dataclasses.dataclass
class _Picture:
    """A picture being edited.

    Attributes:
      frame: uint8[H W 3], or why there is none.
      attention: f32[g g]; None where there is no frame.
    """

    number: int
    original: Original
    frame: np.ndarray | BadSample
    attention: np.ndarray | None
    parts: Parts
    settings: Settings

    def outcome(self, edit: int, out: Path) -> dict[str, Any]:
        """The line of an edit; the pictures of a pair are on disk when this returns."""
        row = dict(id=f"{self.number:06d}-{edit}", source=self.original.media.key)
        try:
            self._make(edit, out, row)
        except Unfit as error:
            row |= dict(skipped=str(error)) | _used(error)
        except Exception as error:  # whatever a part raises is counted, and many in a row stop
            row |= dict(failed=f"{type(error).__name__}: {error}") | _used(error)
        return row

    def _make(self, edit: int, out: Path, row: dict[str, Any]) -> None:
        """Puts what is known of the edit into ``row``, as soon as it is known."""
        if isinstance(self.frame, BadSample):
            raise self.frame
        if edit >= len(self._ranked):
            raise Unfit("it has fewer segments that may be edited than there are --edits")
        row["attention"], target = self._ranked[edit]
        limit = self.settings.max_attention
        if limit is not None and row["attention"] > limit:
            raise Unfit("it has no (further) segment that is ignored as --max_attention says")
        rng = random.Random(f"{self.settings.seed}/{row['source']}/{edit}")
        segment = self._scene.segments[target]
        row["kind"] = rng.choice(self._allowed(segment))
        wording = self.parts.text_model(self._scene, target, row["kind"], rng.getrandbits(32))
        row |= dict(edit=wording.edit, sentence=wording.sentence)
        row |= dict(usage=dict(wording.usage)) if wording.usage else {}
        asked = Edit(row["kind"], segment, wording.edit)
        edited = self._checked(self.parts.editor(self.frame, asked, rng.getrandbits(32)))
        if self.parts.filter is not None:
            row["score"] = float(self.parts.filter(self.frame, edited, asked))
            if not row["score"] >= self.settings.min_score:
                raise Unfit("the filter gives less than --min_score")
        for path, frame in zip(pair_files(row["id"]), (self.frame, edited), strict=True):
            write_bytes(out / path, _png(frame))

    @functools.cached_property
    def _scene(self) -> Scene:
        segments = list(self.parts.segmenter(self.frame))
        for segment in segments:
            if segment.mask.shape != self.frame.shape[:2] or segment.mask.dtype != bool:
                raise ValueError(
                    f"the segmenter's mask of {segment.label!r:.40} is {segment.mask.dtype}"
                    f"{list(segment.mask.shape)}; expected bool{list(self.frame.shape[:2])}"
                )
        return Scene(self.original.caption, segments)

    @functools.cached_property
    def _ranked(self) -> list[tuple[float, int]]:
        """(mean attention as a multiple of the picture's, segment) of those that may be edited, the
        least attended first."""
        height, width = self.frame.shape[:2]
        map = Image.fromarray(self.attention).resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(map, np.float64)  # [H W]
        return sorted(
            (round(float(pixels[segment.mask].mean() / pixels.mean()), 6), index)
            for index, segment in enumerate(self._scene.segments)
            if segment.mask.any() and self._allowed(segment)
        )

    def _allowed(self, segment: Segment) -> list[Kind]:
        """Things are added to background; objects are changed."""
        return [k for k in self.settings.kinds if (k == "add") == segment.is_background]

    def _checked(self, edited: np.ndarray) -> np.ndarray:
        edited = np.asarray(edited)
        if edited.shape != self.frame.shape or edited.dtype != np.uint8:
            raise ValueError(
                f"the editor gave {edited.dtype}{list(edited.shape)}; expected "
                f"uint8{list(self.frame.shape)}"
            )
        if (edited == self.frame).all():
            raise Unfit("the editor changed nothing")
        return edited


def _png(frame: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "PNG")
    return data.getvalue()


def _used(error: Exception) -> dict[str, Any]:
    usage = getattr(error, "usage", None)
    return {"usage": usage} if usage else {}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
