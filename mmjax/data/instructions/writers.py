"""Who writes instructions, by name.

easy-vqa            rules, for the regions easy-vqa; offline
chat-api            a model behind an OpenAI-compatible address, see `mmjax.data.chat_client`
recorded?path=FILE  replies that are there already: JSON lines with ``prompt_sha256`` and
                    ``reply``, as in the ``outcomes.jsonl`` of a folder made before
MODULE:ATTRIBUTE    your own: a class or function that, called with the options, gives a
                    `Writer`
"""

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from mmjax.data.chat_client import ChatClient, Unanswered
from mmjax.data.instructions.replies import parse_reply
from mmjax.data.plugins import Known, load_part
from mmjax.data.recorded import prompt_hash, read_recorded
from mmjax.data.regions import Region
from mmjax.data.sources.easy_vqa_lrv import OPEN, VALUES, instruction

_TASKS = {  # kind of instruction -> its task
    "present": "visual entailment", "colour": "object attribute detection",
    "shape": "object detection",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
      kind: one of `mmjax.data.instructions.prompts.KINDS`.
      regions: of the picture.
      count: how many instructions are wanted.
      prompt: all that in words.
      seed: of the writer's draws.
    """

    kind: str
    regions: Sequence[Region]
    count: int
    prompt: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Written:
    """``reply`` is in the format that the prompt asks for; ``usage``: what it took."""

    reply: str
    usage: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Writer(Protocol):
    """May have ``identity``, JSON-able, that tells it from another; its name does by default."""

    def __call__(self, asked: Asked) -> Written:
        """Any exception is counted as a failure."""
        ...


class ChatWriter(ChatClient):
    """A reply without a single whole instruction is asked for again."""

    TEMPERATURE = 0.7

    def __call__(self, asked: Asked) -> Written:
        def read(text: str) -> None:
            if not parse_reply(text, positive=asked.kind == "positive")[0]:
                raise ValueError(f"no instruction in {text!r:.100}")

        reply = self.ask(asked.prompt, seed=asked.seed, read=read)
        return Written(reply.text, reply.usage)


class RecordedWriter:
    """Replies of a file."""

    def __init__(self, path: str):
        """Raises what `read_recorded` does."""
        self._path, self._replies = path, read_recorded(path)

    def __call__(self, asked: Asked) -> Written:
        if (replies := self._replies.get(prompt_hash(asked.prompt))) is None:
            raise Unanswered(f"{self._path} has no reply to this prompt")
        return Written(replies[-1])


class EasyVQAWriter:
    """Rules for one region, ``small red circle at the top left``: instructions as the source
    ``easy-vqa-lrv`` has them."""

    def __init__(self, facts: str = "colour,shape"):
        """``facts``: of which they speak, see `mmjax.data.sources.easy_vqa_lrv`."""
        self._facts = str(facts).split(",")
        if unknown := set(self._facts) - VALUES.keys():
            raise ValueError(f"--writer=easy-vqa: no fact {', '.join(sorted(unknown))}")

    def __call__(self, asked: Asked) -> Written:
        told = {fact: word for region in asked.regions for fact, word in _told(region.caption)}
        if len(asked.regions) != 1 or not told.keys() >= set(self._facts):
            raise ValueError("the rules are for one region that tells all facts, as easy-vqa's do")
        facts, rng = {fact: told[fact] for fact in self._facts}, random.Random(asked.seed)
        found: dict[str, str] = {}
        for _ in range(100 * asked.count):
            kind = asked.kind
            if kind == "positive":
                kind = rng.choice(("colour", "shape")) if rng.random() < OPEN else "present"
            made = instruction(kind, facts, rng)
            if made.question not in found and len(found) < asked.count:
                label = "Answer" if asked.kind == "positive" else "Reason"
                task = f"\nTask:\n{_TASKS[kind]}" if kind in _TASKS else ""
                text = f"Instruction:\n{made.question}\n{label}:\n{made.sentence}{task}\n"
                found[made.question] = text
        return Written("\n".join(found.values()))


def _told(caption: str) -> list[tuple[str, str]]:
    of = {word: fact for fact, words in VALUES.items() for word in words}
    return [(of[word], word) for word in re.findall(r"\w+", caption) if word in of]


WRITERS: Known = {"easy-vqa": EasyVQAWriter, "chat-api": ChatWriter, "recorded": RecordedWriter}


def load_writer(name: str) -> Writer:
    """Raises ValueError if there is none of that name."""
    described = "mmjax/data/instructions/writers.py"
    return load_part("writer", name, WRITERS, described=described)
