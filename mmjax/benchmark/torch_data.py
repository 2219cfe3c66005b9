"""The same records through torch's DataLoader, transformers' CLIP image processor and tokenizer."""

import functools
import io

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import AutoTokenizer, CLIPImageProcessor

from conversion.weights import locate
from mmjax.data.images import read
from mmjax.data.sources import make_source


def make_loader(config: dict, data: dict, *, rows: int, batches: int, workers: int) -> DataLoader:
    """A loader of ``batches`` shuffled batches of ``rows`` records of a config's ``data`` section,
    other ones each time; its processes stay.

    Raises:
      ValueError: the section has no pictures, or has videos.
    """
    if not data.get("image_size"):
        raise ValueError("this stage has no pictures")
    if data.get("num_frames"):
        raise ValueError("this stage has videos, of which the counterpart decodes none")
    records = Records(config, data)
    return DataLoader(
        records,
        batch_size=rows,
        sampler=_Shuffled(len(records), rows * batches),
        num_workers=workers,
        collate_fn=functools.partial(_collate, length=sum(data["lengths"].values())),
        persistent_workers=workers > 0,
        # Forked, a process would inherit JAX's locks without the threads that hold them.
        multiprocessing_context="spawn" if workers else None,
    )


class Records(Dataset):
    """Pixels f32[3 H W] and ids of a record; each process opens the source for itself."""

    def __init__(self, config: dict, data: dict):
        self._data, self._tokenizer = data, str(locate(config["tokenizer"]))
        self._count = len(self._opened()[0])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[torch.Tensor, list[int]]:
        source, tokenizer, processor = self._opened()
        example = source[number]
        (media,) = example.media
        with Image.open(io.BytesIO(read(media.data, media.key))) as image:
            pixels = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixels, tokenizer(example.text("user") + example.text("assistant"))["input_ids"]

    @functools.lru_cache  # noqa: B019  a process has one of it
    def _opened(self) -> tuple:
        data, size = self._data, self._data["image_size"]
        square = dict(height=size, width=size)
        return (
            make_source(data["source"], data["split"], **data.get("options", {})),
            AutoTokenizer.from_pretrained(self._tokenizer, local_files_only=True),
            CLIPImageProcessor(size=dict(shortest_edge=size), crop_size=square),
        )

    def __getstate__(self) -> dict:
        return {"_data": self._data, "_tokenizer": self._tokenizer, "_count": self._count}


class _Shuffled(Sampler):
    """``count`` numbers below ``total``, others each time."""

    def __init__(self, total: int, count: int):
        self._total, self._count = total, count
        self._draw = np.random.default_rng(0)

    def __len__(self) -> int:
        return self._count

    def __iter__(self):
        return iter(self._draw.integers(self._total, size=self._count).tolist())


def _collate(rows: list[tuple[torch.Tensor, list[int]]], length: int) -> tuple[torch.Tensor, ...]:
    """Stacked pixels, ids padded or cut to ``length``, mask."""
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (_, text) in enumerate(rows):
        cut = torch.tensor(text[:length])
        ids[row, : len(cut)], mask[row, : len(cut)] = cut, True
    return torch.stack([pixels for pixels, _ in rows]), ids, mask
