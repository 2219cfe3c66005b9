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

from pathlib import Path
from typing import Any, Literal

from mmjax.data.example import Example, Media
from mmjax.data.sources import dialogue, records

_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


class Llava(records.Records):
    """The exchanges of a LLaVA file."""

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | None = None,
        turns: dialogue.Turns = "each",
        system: Literal["keep", "user"] = "keep",
    ):
        """Reads and checks the whole file, but opens no picture.

        Raises:
          FileNotFoundError: no such file.
          ValueError: not a list of such records; lists the bad ones.
        """
        path = Path(path)
        dialogue.check_options(turns, system)
        self._path, self._root = path, path.parent if image_root is None else Path(image_root)
        self._turns, self._system, self._left_out = turns, system, 0
        examples = records.parse_all(path, records.read_list(path), self._parse)
        super().__init__(str(path), examples, dialogue.notices(self._left_out))

    def _parse(self, where: str, record: Any) -> list[Example]:
        record = records.as_object(record)
        name = records.id_of(record, f"{self._path.name}:{where.removeprefix('record ')}")
        images = records.paths_of(record.pop("image", None), "field 'image'")
        media = [Media(str(self._root / item), self._root / item) for item in images]
        spoken = record.pop("conversations", None)
        if not isinstance(spoken, list):
            raise ValueError(f"field 'conversations': expected a list, got {spoken!r:.60}")
        messages = []
        for number, message in enumerate(spoken):
            said = f"conversations, {number}"
            speaker = message.get("from") if isinstance(message, dict) else None
            if not isinstance(speaker, str) or speaker not in _ROLES:
                raise ValueError(
                    f"{said}: expected an object from human or gpt, got {message!r:.60}"
                )
            value = records.checked(f"{said}, 'value'", message.get("value"))
            role = _ROLES[speaker]
            messages.append(dialogue.Message(role, dialogue.content_of(role, value, said)))
        examples, left_out = dialogue.examples_of(
            name,
            messages,
            media,
            records.info_of(record),
            turns=self._turns,
            system=self._system,
        )
        self._left_out += left_out
        return examples
