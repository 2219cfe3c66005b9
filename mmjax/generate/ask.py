"""One question about one picture, from a file on disk to words."""

from pathlib import Path

import jax
import numpy as np

from mmjax.data.batch import Batch
from mmjax.data.example import BadSample, Example, Media, Text, Turn
from mmjax.data.images import clip_preprocess, load_image
from mmjax.data.sequence import Lengths, assemble
from mmjax.data.templates import Template
from mmjax.data.tokenizer import Tokenizer
from mmjax.generate.greedy import GreedySettings, make_greedy
from mmjax.nn.param import Params
from mmjax.parallel.distributed import fetch
from mmjax.parallel.sharding import num_row_shards, place, rows_sharding
from mmjax.systems.system import System

BUCKET = 16  # texts are padded to a multiple: questions of similar length share a compilation


def ask(
    system: System,
    params: Params,
    tokenizer: Tokenizer,
    template: Template,
    *,
    image: Path,
    question: str,
    image_size: int,
    max_new_tokens: int,
    mesh: jax.sharding.Mesh,
) -> str:
    """The answer to ``question`` about the picture in the file ``image``, greedily.

    Args:
      template: the one that the system was trained with.
      image_size: side of the square that the picture is cut to, in pixels.

    Raises:
      BadSample: a picture that cannot be read, or an empty question.
    """
    picture = Media(str(image), Path(image))
    turn = Turn("user", (picture, Text(question)))
    encoded = template.encode(Example(str(image), (turn,)), tokenizer, generating=True)
    if not question.strip():
        raise BadSample(str(image), None, "the question is empty")
    lengths = {
        part: -(-sum(len(segment.ids) for segment in segments) // BUCKET) * BUCKET
        for part in ("prefix", "request", "target")
        if (segments := getattr(encoded, part)) is not None
    }
    copies = num_row_shards(
        mesh
    )  # one row for each device that holds rows; all but the first are ballast
    prefix, request, target = assemble([encoded] * copies, Lengths(**lengths), tokenizer.pad_id)
    frame = clip_preprocess(load_image(picture), image_size)
    batch = Batch(
        row_id=np.arange(copies),
        prefix=prefix,
        request=request,
        target=target,
        frames=np.broadcast_to(frame, (copies, 1, *frame.shape)).copy(),
        frame_item=np.zeros((copies, 1), np.int32),
        frame_time=np.full((copies, 1), -1, np.int32),
    )
    settings = GreedySettings(max_new_tokens, (tokenizer.eos_id,), tokenizer.pad_id)
    batch = jax.tree.map(lambda x: place(x, rows_sharding(mesh)), batch)
    tokens = make_greedy(system, settings)(params, batch)
    return tokenizer.decode(fetch(tokens)[0]).strip()
