"""The originals' layouts of a batch as ours: ids, masks and labels become a `Sequence`.

Cheetor pads inside its rows, so that the pictures of a batch stand at the same places (Cheetor
reference, section 4). Two prompts of two pictures, ``q`` = 2, ``_`` a pad:

    train_arange   each text is padded on the right; the answer follows the last real token of the
                   prompt; positions count places

        s a b x x c _ x x d e f A A #              s = bos, x = picture, A A # = the answer
        s a _ x x c c x x d A # _ e _ ...

    infer_cumsum   each text is padded on the left, bos with the first; positions count real tokens

        s a b x x _ c x x d e f
        _ s a x x c c x x _ _ d
"""

import dataclasses
from collections.abc import Sequence as Several
from typing import Literal

import numpy as np

from mmjax.data.batch import Batch, Sequence
from mmjax.data.sequence import Lengths, assemble
from mmjax.data.templates import Encoded, Segment
from mmjax.generate.config import GenerationConfig

IGNORED = -100  # the label of what is not predicted
Text = list[int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A batch as Cheetor lays it out.

    Attributes:
      tokens, mask, positions, labels: i32[b t]; labels are not shifted.
      pictures: i32[n 2], start and end (exclusive) of each picture, the same in all rows.
      guidance: i32[b], the token that guides the second look.
    """

    tokens: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    pictures: np.ndarray
    guidance: np.ndarray

    def batch(self, features: np.ndarray, *, is_guided: bool = True) -> Batch:
        """``features`` [b f p+1 e]; without ``is_guided`` pictures are looked at once."""
        media = np.full(self.tokens.shape, -1, np.int32)
        for number, (start, end) in enumerate(self.pictures):
            media[:, start:end] = number * (end - start) + np.arange(end - start)
        slots = {"media": media}
        if is_guided:
            here = np.arange(self.tokens.shape[1]) == self.guidance[:, None]
            slots["guidance"] = np.where(here, 0, -1).astype(np.int32)
        target = sequence(self.tokens, self.mask, slots, self.labels, positions=self.positions)
        return Batch(np.arange(len(self.tokens)), target, features=features)


def lay_out(
    prompts: Several[Several[Text]],
    answers: Several[Text] | None = None,
    *,
    mode: Literal["train_arange", "infer_cumsum"],
    bos: int,
    pad: int,
    tokens_per_picture: int,
) -> Layout:
    """Rows with their pictures side by side.

    Args:
      prompts: the texts of each row, a picture between each two.
      answers: of training, end included.

    Raises:
      ValueError: rows of different numbers of pictures, which this layout has no place for, or
        answers where they do not belong.
    """
    counts = {len(texts) for texts in prompts}
    if len(counts) != 1 or mode not in ("train_arange", "infer_cumsum"):
        raise ValueError(
            f"mode {mode!r}, rows of {sorted(count - 1 for count in counts)} pictures: this layout "
            "is train_arange or infer_cumsum, of rows that all have as many"
        )
    training = mode == "train_arange"
    if training != (answers is not None):
        raise ValueError(f"mode {mode!r} takes {'' if training else 'no '}answers")
    b, n = len(prompts), counts.pop() - 1
    columns, pictures = [], []
    start = np.full((b, 1), bos)
    if training:
        columns.append((start, np.ones_like(start)))
    for k in range(n + 1):
        texts = [texts[k] for texts in prompts]
        if not training and k == 0:
            texts = [[bos, *text] for text in texts]
        columns.append(_padded(texts, pad, left=not training))
        if k < n:
            at = sum(ids.shape[1] for ids, _ in columns)
            pictures.append((at, at + tokens_per_picture))
            block = np.full((b, tokens_per_picture), pad)
            columns.append((block, np.ones_like(block)))
    tokens, mask = (np.concatenate(parts, axis=1) for parts in zip(*columns, strict=True))
    labels, t = np.full_like(tokens, IGNORED), tokens.shape[1]
    guidance = np.full(b, t - 1)
    if training:
        guidance = t - 1 - mask[:, ::-1].argmax(axis=1)
        ids, seen = _padded(answers, pad, left=False)
        into = lambda rows, block: np.stack(  # noqa: E731
            [np.insert(row, i + 1, new) for row, i, new in zip(rows, guidance, block, strict=True)]
        )
        tokens, mask = into(tokens, ids), into(mask, seen)
        labels = into(labels, np.where(ids == pad, IGNORED, ids))
        positions = np.tile(np.arange(tokens.shape[1]), (b, 1))
    else:
        positions = np.where(mask > 0, np.cumsum(mask, axis=1) - 1, 1)
    pictures = np.array(pictures, np.int32).reshape(n, 2)
    return Layout(tokens, mask, positions, labels, pictures, guidance)


def compact(
    prompts: Several[Several[Text]], *, bos: int, pad: int, tokens_per_picture: int
) -> Sequence:
    """The same prompts as our templates lay them out: no pads inside, guided by the last token."""
    rows = []
    for first, *others in prompts:
        segments = [Segment((bos, *first))]
        for picture, text in enumerate(others):
            slots = (picture * tokens_per_picture + i for i in range(tokens_per_picture))
            segments += [Segment((pad,), slot=("media", slot)) for slot in slots]
            segments.append(Segment(tuple(text)))
        last = segments.pop()
        segments += [Segment(last.ids[:-1]), Segment(last.ids[-1:], slot=("guidance", 0))]
        rows.append(Encoded(segments))
    longest = max(sum(len(segment.ids) for segment in row.target) for row in rows)
    return assemble(rows, Lengths(target=longest), pad)[2]


def sequence(
    tokens: np.ndarray,
    mask: np.ndarray,
    slots: dict[str, np.ndarray],
    labels: np.ndarray | None = None,
    *,
    positions: np.ndarray | None = None,
) -> Sequence:
    """Hugging Face's ids, mask and labels (-100 = not predicted) in our terms; labels are shifted.
    Positions count places by default."""
    b, t = tokens.shape
    ahead = np.full((b, t), IGNORED)
    if labels is not None:
        ahead[:, :-1] = labels[:, 1:]
    if positions is None:
        positions = np.tile(np.arange(t), (b, 1))
    return Sequence(
        tokens=tokens.astype(np.int32),
        positions=positions.astype(np.int32),
        segments=mask.astype(np.int32),
        targets=np.maximum(ahead, 0).astype(np.int32),
        weights=(ahead >= 0).astype(np.float32),
        slots=slots,
    )


def with_bos(tokens: np.ndarray, settings: GenerationConfig) -> np.ndarray:
    """New tokens [b t] as transformers gives them back: after the bos that is never read, as long
    as the longest answer."""
    ends = np.isin(tokens, settings.eos_tokens)
    lengths = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, tokens.shape[1])
    return np.insert(tokens[:, : lengths.max()], 0, settings.bos_token, axis=1)


def _padded(texts: Several[Text], pad: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask), both [b t], t the longest."""
    width = max(map(len, texts))
    ids, mask = np.full((len(texts), width), pad), np.zeros((len(texts), width), int)
    for row, text in enumerate(texts):
        here = slice(width - len(text), width) if left else slice(0, len(text))
        ids[row, here], mask[row, here] = text, 1
    return ids, mask
