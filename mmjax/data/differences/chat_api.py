"""A text model behind an OpenAI-compatible address: the paper's ChatGPT, or a server of your own.

    chat-api?base_url=http://localhost:8000/v1&model=NAME

The key, if one is needed, is read from the environment (``OPENAI_API_KEY``, or what ``key_env``
names). The paper does not print its prompts; this one is ours.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from mmjax.data.differences.interfaces import Kind, Scene, Segment, Unanswered, Unfit, Wording

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
_RETRIED = (408, 409, 429, 500, 502, 503, 504)
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds


class ChatAPI:
    """Asks for an edit; what is not an answer in the wanted form is asked for again."""

    def __init__(
        self,
        base_url: str,
        model: str,
        key_env: str = "OPENAI_API_KEY",
        retries: int = 5,
        timeout: float = 60,
        temperature: float = 1,
        prompt_price: float = 0,
        completion_price: float = 0,
    ):
        """
        Args:
          base_url: up to and without ``/chat/completions``.
          model: the name that the server knows.
          key_env: the environment variable that holds the key; none is sent where it is not set.
          retries: how often a request is sent again, each time after twice as long a while.
          timeout: in seconds, of a request.
          temperature: of the model.
          prompt_price: of a million tokens; with one of the prices the report says what it cost.
          completion_price: likewise.

        Raises:
          ValueError: the address is none, or a number is none.
        """
        if not str(base_url).startswith(("http://", "https://")):
            raise ValueError(f"chat-api: base_url must start with http:// or https://: {base_url}")
        self._url, self._model = f"{str(base_url).rstrip('/')}/chat/completions", str(model)
        self._key, self._retries = os.environ.get(str(key_env)), int(retries)
        self._timeout, self._temperature = float(timeout), float(temperature)
        self._prices = float(prompt_price), float(completion_price)

    def __call__(self, scene: Scene, target: int, kind: Kind, seed: int) -> Wording:
        """
        Raises:
          Unfit: the model says that no edit makes sense.
          Unanswered: no answer came, or none in the wanted form; or the server refuses to give one.
        """
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt(scene, target, kind)}],
            "temperature": self._temperature,
            "seed": seed,
        }
        usage = dict(requests=0, prompt_tokens=0, completion_tokens=0)
        for attempt in range(self._retries + 1):
            usage["requests"] += 1
            try:
                reply = self._post(body)
                for name in ("prompt_tokens", "completion_tokens"):
                    usage[name] += int((reply.get("usage") or {}).get(name) or 0)
                return _wording(reply["choices"][0]["message"]["content"], self._costs(usage))
            except urllib.error.HTTPError as error:
                said = error.read(300).decode(errors="replace")
                problem = f"{self._url}: {error.code} {error.reason}: {said}"
                if error.code not in _RETRIED:
                    raise Unanswered(problem, self._costs(usage)) from error
                asked = error.headers.get("Retry-After") or ""
                wait = min(float(asked), _LONGEST_WAIT) if asked.isdigit() else None
            except (OSError, http.client.HTTPException) as error:  # a timeout is an OSError
                problem, wait = f"{self._url}: {type(error).__name__}: {error}", None
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                problem, wait = f"{self._model}: no answer as asked for ({error})", 0.0
            if attempt < self._retries:
                default = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
                time.sleep(default if wait is None else wait)
                body["seed"] = seed + attempt + 1  # the same question would get the same answer
        raise Unanswered(f"{problem}; {self._retries + 1} requests", self._costs(usage))

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self._timeout) as reply:
            return json.loads(reply.read())

    def _costs(self, usage: Mapping[str, float]) -> dict[str, float]:
        tokens = usage["prompt_tokens"], usage["completion_tokens"]
        cost = sum(n * price for n, price in zip(tokens, self._prices, strict=True)) / 1e6
        return {**usage, **({"cost": cost} if any(self._prices) else {})}


def prompt(scene: Scene, target: int, kind: Kind) -> str:
    """What the model is asked."""
    segments = [_said(segment) for segment in scene.segments]
    return _PROMPT.format(
        caption=scene.caption or "(none)",
        segments="\n".join(f"- {segment}" for segment in segments),
        target=segments[target],
        task=_TASKS[kind],
    )


def _wording(text: str, usage: Mapping[str, float]) -> Wording:
    answer = json.loads(text[text.index("{") : text.rindex("}") + 1])  # some put a fence around it
    if answer.get("unfit"):
        raise Unfit(f"the text model says: {answer['unfit']!s:.200}", usage)
    edit, sentence = (answer[name].strip() for name in ("edit", "sentence"))
    if not edit or not sentence:
        raise ValueError(f"an empty field in {text!r:.100}")
    return Wording(edit, sentence, usage)


def _said(segment: Segment) -> str:
    height, width = segment.mask.shape
    box = zip(segment.box, (width, height, width, height), strict=True)
    edges = ", ".join(str(round(100 * edge / side)) for edge, side in box)
    return f"{segment.label} ({edges}{'; background' if segment.is_background else ''})"
