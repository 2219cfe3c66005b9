"""A chat server that misbehaves as told."""

import contextlib
import http.server
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator


class ChatServer:
    """Goes through ``plan``, one entry a request, then answers with ``answer``.

    An entry is the text of an answer; or a status with headers, ``(429, {"Retry-After": "0"})``; or

        slow     no answer before the client has gone
        reset    the connection is cut
        half     half of a whole answer, then the end
        torn     half of an answer's JSON, as if it were whole
        nothing  JSON without an answer in it

    Attributes:
      url: the base address.
      seen: (authorization, body) of each request.
    """

    def __init__(self, answer: Callable[[dict], str] = lambda body: "fine"):
        self.plan, self.seen, self.answer = [], [], answer
        self.url = ""
        self.lock = threading.Lock()

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for _, body in self.seen]


@contextlib.contextmanager
def serving(server: ChatServer) -> Iterator[ChatServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.seen.append((self.headers.get("Authorization"), body))
                step = server.plan.pop(0) if server.plan else server.answer(body)
            _misbehave(self, step)

        def do_GET(self):
            server.seen.append((self.headers.get("Authorization"), {}))
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        server.url = f"http://127.0.0.1:{running.server_port}/v1"
        yield server
        running.shutdown()


def _misbehave(handler: http.server.BaseHTTPRequestHandler, step) -> None:
    text = step if isinstance(step, str) else ""
    message = {"choices": [{"message": {"content": text}}]}
    data = json.dumps(message | {"usage": {"prompt_tokens": 100, "completion_tokens": 10}}).encode()
    status, headers = (200, {}) if isinstance(step, str) else step
    if step == "slow":
        threading.Event().wait(0.5)  # not time.sleep, which tests replace
        return
    if step == "reset":
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        return
    announced = len(data)
    if step in ("half", "torn"):
        data = data[: len(data) // 2]
    if step == "torn":
        announced = len(data)
    if step == "nothing":
        data = b'{"object": "error"}'
        announced = len(data)
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(announced))
    handler.end_headers()
    handler.wfile.write(data)
