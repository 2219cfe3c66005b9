"""LLaVA's conversations: ``llava:PATH.json``, a JSON list of

    {"id": "000000215677", "image": "000000215677.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                       {"from": "gpt", "value": "A cat."}, ...]}

``image`` is a path or a list of paths, relative to ``image_root`` (by default the file's folder).
Each ``<image>`` in what the human says stands for the next picture, and the line break beside it
goes. Records without a picture are text alone, which the template may refuse.

Options: ``image_root``; ``turns``, see `mmjax.data.sources.dialogue`. LMEye's second generation
trained on the first exchange of each record: ``turns=first``.
"""

from mmjax.data.sources.dialogue import DialogueRecords, Format

_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


class LlavaFormat(Format):
    images = ("image",)
    messages, role_field, content_field = "conversations", "from", "value"
    roles = _ROLES


class Llava(DialogueRecords):
    """The exchanges of a LLaVA file."""

    format = LlavaFormat
