"""easy-VQA as a tensorflow-datasets data set: ArrayRecord files, tensorflow never imported.

    python scripts/prepare_data.py tfds --data_dir DIR

Splits are those of `mmjax.data.sources.easy_vqa`: train, dev, test. Features: image (encoded PNG),
question, answer, kind. Read it again with ``tfds:easy_vqa?data_dir=DIR&kind=kind``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.data.sources import easy_vqa
from mmjax.data.sources.tfds import import_tfds

SPLITS = ("train", "dev", "test")


def prepare(data_dir: str | Path) -> Path:
    """Writes the data set below ``data_dir``, unless it is there; returns its folder."""
    builder = make_builder(data_dir)
    builder.download_and_prepare()
    return Path(builder.data_dir)


def make_builder(data_dir: str | Path) -> Any:
    """A ``tfds.core.GeneratorBasedBuilder`` of easy-VQA."""
    tfds = import_tfds()

    class EasyVqa(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Questions about pictures of one shape."""

        VERSION = tfds.core.Version("1.0.0")
        url_infos = {}  # noqa: RUF012  nothing is downloaded

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="png"),
                    "question": tfds.features.Text(),
                    "answer": tfds.features.Text(),
                    "kind": tfds.features.ClassLabel(names=list(easy_vqa.KINDS)),
                }
            )
            return tfds.core.DatasetInfo(
                builder=self,
                features=features,
                description="Simple questions about generated pictures of one shape.",
                homepage="https://github.com/vzhou842/easy-VQA",
                license="MIT",
            )

        def _split_generators(self, download_manager: Any) -> dict[str, Iterator]:
            del download_manager  # the pictures come with the package easy-vqa
            return {split: self._generate_examples(split) for split in SPLITS}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            for number, question in enumerate(easy_vqa.questions(split)):
                picture = easy_vqa.picture(split, question.picture)
                yield (
                    number,
                    {
                        "image": str(picture.data),  # as it is on disk: encoded
                        "question": question.question,
                        "answer": question.answer,
                        "kind": question.kind,
                    },
                )

    return EasyVqa(data_dir=str(data_dir), file_format="array_record")
