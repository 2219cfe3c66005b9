"""Replies that were given before, by what was asked: in place of a model that costs something."""

import hashlib
from pathlib import Path

from mmjax.data.sources import records
from mmjax.data.sources.jsonl import JsonlFormat


def prompt_hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def read_recorded(path: str | Path) -> dict[str, list[str]]:
    """`prompt_hash` -> replies, in order, of JSON lines with ``prompt_sha256`` and ``reply``; other
    lines are passed over.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line is not JSON, or not one is a reply.
    """
    found: dict[str, list[str]] = {}
    for where, line in JsonlFormat.items(records.existing(path)):
        try:
            row = records.as_object(records.parse_json(line))
        except ValueError as error:
            raise ValueError(f"{path}, {where}: {error}") from error
        asked, reply = row.get("prompt_sha256"), row.get("reply")
        if isinstance(asked, str) and isinstance(reply, str):
            found.setdefault(asked, []).append(reply)
    if not found:
        raise ValueError(f"{path}: no line has the fields 'prompt_sha256' and 'reply'")
    return found
