"""The client against a server that misbehaves in every way that is known."""

import email.utils
import time

import pytest
from data.chat_server import ChatServer, serving

from mmjax.data import chat_client
from mmjax.data.chat_client import ChatClient, Unanswered


@pytest.fixture
def waited(monkeypatch):
    found = []
    monkeypatch.setattr(chat_client.time, "sleep", found.append)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TEST_KEY", " sk-secret\n")
    return found


@pytest.fixture
def server(waited):
    with serving(ChatServer()) as running:
        yield running


def client(server, **options) -> ChatClient:
    return ChatClient(server.url, "parrot", **dict(key_env="TEST_KEY") | options)


# what the server does -> what it costs: tokens of how many answers, seconds waited before the next
MISBEHAVIOUR = {
    "slow": (0, 1.0),
    "reset": (0, 1.0),
    "half": (0, 1.0),
    "torn": (0, 0.0),
    "nothing": (0, 0.0),
}


@pytest.mark.parametrize("how", MISBEHAVIOUR)
def test_what_fails_for_a_while_is_asked_again(server, waited, how):
    paid, wait = MISBEHAVIOUR[how]
    server.plan += [how, "well"]
    reply = client(server, timeout=0.2 if how == "slow" else 5).ask("hello")
    assert (reply.text, reply.value) == ("well", "well")
    assert reply.usage == dict(
        requests=2, prompt_tokens=100 * (paid + 1), completion_tokens=10 * (paid + 1)
    )
    assert waited == [wait] and len(server.seen) == 2


def test_a_server_that_trickles_is_not_waited_for(server, monkeypatch):
    """Each piece comes in time, the whole does not."""
    clock = iter([0.0, 61.0])
    monkeypatch.setattr(chat_client.time, "monotonic", lambda: next(clock))
    with pytest.raises(Unanswered, match="TimeoutError: no whole reply in 60 seconds; 1 requests"):
        client(server, retries=0).ask("hello")


def test_it_waits_as_long_as_it_is_asked_to(server, waited):
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    gone = email.utils.formatdate(time.time() - 30, usegmt=True)
    asked = ["7", "100000", soon, gone, "whenever", ""]
    server.plan += [(429, {"Retry-After": value}) for value in asked]
    client(server, retries=6).ask("hello")
    assert waited[:2] == [7.0, 60.0] and 25 < waited[2] <= 30 and waited[3] == 0.0
    assert waited[4:] == [16.0, 32.0]  # by itself: 1, 2, 4, ...


def test_it_gives_up(server, waited):
    server.plan += [(500, {}), (503, {}), "reset"]
    with pytest.raises(Unanswered, match="Connection reset.*; 3 requests") as caught:
        client(server, retries=2).ask("hello")
    assert caught.value.usage == dict(requests=3, prompt_tokens=0, completion_tokens=0)
    server.plan += [(400, {})]  # its own fault: not asked again
    with pytest.raises(Unanswered, match="400 Bad Request"):
        client(server).ask("hello")
    assert len(server.seen) == 4 and len(waited) == 2


def test_answers_that_cannot_be_read_are_asked_for_again(server):
    server.plan += ["no number", "7"]
    reply = client(server, prompt_price=10, completion_price=100).ask("hello", seed=3, read=int)
    assert reply.value == 7 and reply.usage["cost"] == pytest.approx(
        2 * (100 * 10 + 10 * 100) / 1e6
    )
    assert [body["seed"] for _, body in server.seen] == [3, 4]


def test_what_is_sent(server):
    client(server, temperature=0, max_tokens=20).ask("hello")
    ((key, body),) = server.seen
    assert key == "Bearer sk-secret" and body == dict(
        model="parrot", messages=[{"role": "user", "content": "hello"}], temperature=0.0, seed=0,
        max_tokens=20,
    )  # fmt: skip
    assert client(server, temperature=0).identity == {"model": "parrot", "temperature": 0.0}


def test_the_key_stays_where_it_is(server, waited, monkeypatch):
    """Not in messages, although servers quote it; and not sent elsewhere."""
    server.plan += [(302, {"Location": f"{server.url}/elsewhere"})]
    with pytest.raises(Unanswered, match="302"):
        client(server).ask("hello")
    assert len(server.seen) == 1
    with pytest.raises(Unanswered, match=r"no answer as asked for \(.*\(the key\)") as caught:
        client(server, retries=0).ask("hello", read=lambda _: int("sk-secret"))
    assert "sk-secret" not in str(caught.value)
    monkeypatch.setenv("TEST_KEY", "sk-sec\nret")  # http.client would quote what it cannot send
    with pytest.raises(ValueError, match="TEST_KEY holds blanks") as caught:
        client(server)
    assert "sk-sec" not in str(caught.value)
    with pytest.raises(ValueError, match="a key goes into the environment") as caught:
        ChatClient("https://me:sk-secret@host/v1", "parrot")
    assert "sk-secret" not in str(caught.value)


def test_wrong_settings(server):
    for wrong in ("localhost:8000", "ftp://host", "http:/host"):
        with pytest.raises(ValueError, match="must start with http"):
            ChatClient(wrong, "parrot")
    with pytest.raises(ValueError, match="timeout above 0, got 5, 0"):
        client(server, timeout=0)
