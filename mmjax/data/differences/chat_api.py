"""A text model behind an OpenAI-compatible address: the paper's ChatGPT, or a server of your own;
see `mmjax.data.chat_client`.

The paper does not print its prompts; this one is ours.
"""

import json
from collections.abc import Mapping

from mmjax.data.chat_client import ChatClient
from mmjax.data.differences.interfaces import Kind, Scene, Segment, Unfit, Wording

_TASKS: Mapping[Kind, str] = {
    "modify": "Change one property of the object (its colour, material or state); it stays the "
    "same object.",
    "swap": "Replace the object by a different one that fits the scene.",
    "delete": "Remove the object; describe the background that is seen in its place.",
    "add": "Add one new object that fits the scene, within this part of the background.",
}
_PROMPT = """\
A picture is edited in one place. You write what the place shows after the edit, and the difference.

Caption of the picture: {caption}
What it shows, with boxes as left, top, right, bottom in percent of its width and height:
{segments}

The place of the edit: {target}
The edit: {task}

Answer with a JSON object and nothing else:
{{"edit": "a short noun phrase: what the place shows after the edit",
  "sentence": "one sentence that says how the second picture differs from the first"}}
If no edit makes sense there, answer {{"unfit": "why"}}.
"""


class ChatAPI(ChatClient):
    """Asks for an edit; what is not an answer in the wanted form is asked for again."""

    def __call__(self, scene: Scene, target: int, kind: Kind, seed: int) -> Wording:
        """
        Raises:
          Unfit: the model says that no edit makes sense.
          Unanswered: no answer came, or none in the wanted form; or the server refuses to give one.
        """
        reply = self.ask(prompt(scene, target, kind), seed=seed, read=_fields)
        if unfit := reply.value.get("unfit"):
            raise Unfit(f"the text model says: {unfit:.200}", reply.usage)
        return Wording(**reply.value, usage=reply.usage)


def prompt(scene: Scene, target: int, kind: Kind) -> str:
    """What the model is asked."""
    segments = [_said(segment) for segment in scene.segments]
    return _PROMPT.format(
        caption=scene.caption or "(none)",
        segments="\n".join(f"- {segment}" for segment in segments),
        target=segments[target],
        task=_TASKS[kind],
    )


def _fields(text: str) -> dict[str, str]:
    """What the answer says: ``edit`` and ``sentence``, or ``unfit``."""
    answer = json.loads(text[text.index("{") : text.rindex("}") + 1])  # some put a fence around it
    if answer.get("unfit"):
        return {"unfit": str(answer["unfit"])}
    found = {name: answer[name].strip() for name in ("edit", "sentence")}
    if not all(found.values()):
        raise ValueError(f"an empty field in {text!r:.100}")
    return found


def _said(segment: Segment) -> str:
    height, width = segment.mask.shape
    box = zip(segment.box, (width, height, width, height), strict=True)
    edges = ", ".join(str(round(100 * edge / side)) for edge, side in box)
    return f"{segment.label} ({edges}{'; background' if segment.is_background else ''})"
