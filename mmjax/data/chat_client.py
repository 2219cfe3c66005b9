"""Asks a model behind an OpenAI-compatible address: a service, or a server of your own.

    chat-api?base_url=http://localhost:8000/v1&model=NAME

The key, if one is needed, is read from the environment (``OPENAI_API_KEY``, or what ``key_env``
names). It is sent to that address and nowhere else: redirections are not followed, and messages
that would contain it do not.
"""

import dataclasses
import email.utils
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

_RETRIED = (408, 409, 429, 500, 502, 503, 504)
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds
_MAX_BYTES = 1 << 24  # of a reply
T = TypeVar("T")


class Unanswered(Exception):
    """A service does not do its work; says why.

    Attributes:
      usage: what was spent nevertheless, as in `Reply`.
    """

    def __init__(self, reason: str, usage: Mapping[str, float] | None = None):
        super().__init__(reason)
        self.usage = dict(usage or {})


@dataclasses.dataclass(frozen=True)
class Reply(Generic[T]):
    """An answer.

    Attributes:
      text: what the model wrote.
      value: what was read from it.
      usage: what it took: requests, tokens, and with prices the cost.
    """

    text: str
    value: T
    usage: Mapping[str, float]


class ChatClient:
    """One question a request; what fails for a while is asked again.

    Attributes:
      identity: JSON-able; tells what answers from another. The address is no part of it: the same
        model may be served elsewhere tomorrow.
    """

    TEMPERATURE = 1.0  # by default; subclasses have their own

    def __init__(
        self,
        base_url: str,
        model: str,
        key_env: str = "OPENAI_API_KEY",
        retries: int = 5,
        timeout: float = 60,
        temperature: float | None = None,
        max_tokens: int | None = None,
        prompt_price: float = 0,
        completion_price: float = 0,
    ):
        """
        Args:
          base_url: up to and without ``/chat/completions``.
          model: the name that the server knows.
          key_env: the environment variable that holds the key; none is sent where it is not set.
          retries: how often a request is sent again, each time after twice as long a while, or
            after what the server asks for, up to a minute.
          timeout: in seconds, of a request.
          temperature: of the model.
          max_tokens: of an answer; by default the server's own limit.
          prompt_price: of a million tokens; with one of the prices the report says what it cost.
          completion_price: likewise.

        Raises:
          ValueError: the address, the key or a number is none.
        """
        parsed = urllib.parse.urlsplit(str(base_url))
        if parsed.username is not None or parsed.query or parsed.fragment:
            raise ValueError(
                "chat-api: base_url holds more than an address; a key goes into the environment "
                f"variable {key_env}, where no log and no file gets it"
            )
        if parsed.scheme not in ("http", "https") or not parsed.netloc:
            raise ValueError(f"chat-api: base_url must start with http:// or https://: {base_url}")
        self._url, self._model = f"{str(base_url).rstrip('/')}/chat/completions", str(model)
        self._key, self._retries = os.environ.get(str(key_env), "").strip(), int(retries)
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise ValueError(f"chat-api: {key_env} holds blanks or letters with marks, no key")
        self._timeout = float(timeout)
        self._temperature = self.TEMPERATURE if temperature is None else float(temperature)
        self._max_tokens = None if max_tokens is None else int(max_tokens)
        self._prices = float(prompt_price), float(completion_price)
        if self._retries < 0 or self._timeout <= 0:
            raise ValueError(
                f"chat-api: retries must be 0 or more and timeout above 0, got {retries}, {timeout}"
            )
        self._opener = urllib.request.build_opener(_NoRedirection)

    @property
    def identity(self) -> dict[str, Any]:
        limit = {} if self._max_tokens is None else {"max_tokens": self._max_tokens}
        return {"model": self._model, "temperature": self._temperature, **limit}

    def ask(self, prompt: str, *, seed: int = 0, read: Callable[[str], T] = str) -> Reply[T]:
        """
        Args:
          prompt: the user's message.
          seed: of the model's draws; the next one for each request that follows.
          read: takes the answer apart; what it raises ValueError, KeyError and the like for is
            asked for again.

        Raises:
          Unanswered: no answer came, or none in the wanted form; or the server refuses to give one.
        """
        body = dict(model=self._model, messages=[{"role": "user", "content": prompt}])
        body |= dict(temperature=self._temperature, seed=seed)
        body |= {} if self._max_tokens is None else dict(max_tokens=self._max_tokens)
        usage = dict(requests=0, prompt_tokens=0, completion_tokens=0)
        for attempt in range(self._retries + 1):
            usage["requests"] += 1
            try:
                reply = self._post(body)
                for name in ("prompt_tokens", "completion_tokens"):
                    usage[name] += int((reply.get("usage") or {}).get(name) or 0)
                text = reply["choices"][0]["message"]["content"]
                if not isinstance(text, str):
                    raise ValueError(f"its content is {text!r:.60}")
                return Reply(text, read(text), self._costs(usage))
            except urllib.error.HTTPError as error:
                problem = f"{self._url}: {error.code} {error.reason}: {_said(error)}"
                if error.code not in _RETRIED:
                    raise self._unanswered(problem, usage) from None
                wait = _asked_for(error.headers.get("Retry-After") or "")
            except (OSError, http.client.HTTPException) as error:  # a timeout is an OSError
                problem, wait = f"{self._url}: {type(error).__name__}: {error}", None
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                problem, wait = f"{self._model}: no answer as asked for ({error})", 0.0
            if attempt < self._retries:
                default = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
                time.sleep(default if wait is None else wait)
                body["seed"] = seed + attempt + 1  # the same question would get the same answer
        raise self._unanswered(f"{problem}; {self._retries + 1} requests", usage)

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        deadline = time.monotonic() + self._timeout  # the socket's own is of each piece
        with self._opener.open(request, timeout=self._timeout) as reply:
            data = bytearray()
            while piece := reply.read1(1 << 16):
                data += piece
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no whole reply in {self._timeout:g} seconds")
                if len(data) > _MAX_BYTES:
                    raise ValueError(f"more than {_MAX_BYTES:,} bytes")
            if reply.length:  # announced, and not there
                raise http.client.IncompleteRead(bytes(data), reply.length)
            return json.loads(data)

    def _costs(self, usage: Mapping[str, float]) -> dict[str, float]:
        tokens = usage["prompt_tokens"], usage["completion_tokens"]
        cost = sum(n * price for n, price in zip(tokens, self._prices, strict=True)) / 1e6
        return {**usage, **({"cost": cost} if any(self._prices) else {})}

    def _unanswered(self, problem: str, usage: Mapping[str, float]) -> Unanswered:
        if self._key:  # servers quote it
            problem = problem.replace(self._key, "(the key)")
        return Unanswered(problem, self._costs(usage))


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """The key would go along."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _asked_for(header: str) -> float | None:
    """Seconds that a server asks to wait: a number, or a date."""
    if header.isdigit():
        return min(float(header), _LONGEST_WAIT)
    try:
        until = email.utils.parsedate_to_datetime(header).timestamp()
    except ValueError:
        return None
    return min(max(until - time.time(), 0.0), _LONGEST_WAIT)


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(300).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return "(the rest did not come)"
