"""A conversation in the terminal, and an answer that is written while it is made.

What a model is shown of a conversation goes through its own template. Templates without
`Template.takes_history` see the last message alone, with all pictures of the conversation.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import jax

from mmjax.data.example import BadSample, Example, Media, Text, Turn
from mmjax.data.images import load_image
from mmjax.data.video import prepare_video
from mmjax.generate.answer import Answer, Answerer, Prompt
from mmjax.generate.question import last_question, picture, row_seed, video

HELP = """\
/image FILE   add a picture to the next message, as often as needed
/video FILE   add a video
/reset        forget the conversation and its pictures
/help         this
/quit         end, as does Ctrl-D; Ctrl-C stops an answer"""
ALONE = (
    "This model answers one question at a time: it is not shown earlier questions and answers, but "
    "all pictures since the last /reset."
)


def pieces(answerer: Answerer, prompt: Prompt, seed: int) -> Iterator[str]:
    """The answer as it is to be read, piece by piece while it is made; where that cannot be
    (beams, several answers), in one piece, several answers numbered."""
    config = answerer.config
    if config.num_beams == 1 and config.num_return_sequences == 1:
        yield from answerer.stream(prompt, seed)
    else:
        yield _listed(*answerer.answer([prompt], [seed]))


def typed() -> Iterator[str]:
    """Lines from the terminal, until Ctrl-D; a line is given up with Ctrl-C."""
    try:
        import readline  # noqa: F401  arrow keys and history in input()
    except ImportError:
        pass  # not on Windows, whose terminal has its own
    invitation = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(invitation)
        except EOFError:
            if invitation:
                print()  # what comes next starts on a line of its own
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit ends)")


def chat(
    answerer: Answerer,
    lines: Iterable[str],
    out: TextIO,
    *,
    takes_history: bool,
    seed: int = 0,
) -> None:
    """Answers messages and obeys commands until ``lines`` end, or one of them is /quit.

    Raises:
      ValueError: several answers to each message are asked for, or several processes run.
    """
    if jax.process_count() > 1:
        raise ValueError(f"a chat runs in one process, not in {jax.process_count()}")
    if (several := answerer.config.num_return_sequences) > 1:
        raise ValueError(f"num_return_sequences = {several}: a chat goes on from one answer")
    conversation = Conversation(answerer, out, takes_history=takes_history, seed=seed)
    conversation.say("/image FILE adds a picture to the next message; /help lists all commands.")
    if not takes_history:
        conversation.say(ALONE)
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        if command == "/quit":
            return
        conversation.take(command, rest.strip())


class Conversation:
    """What was said and shown so far."""

    def __init__(self, answerer: Answerer, out: TextIO, *, takes_history: bool, seed: int):
        self._answerer, self._out = answerer, out
        self._takes_history, self._seed = takes_history, seed
        self._turns: list[Turn] = []
        self._pictures: list[Media] = []  # of the next message
        self._asked = 0

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def take(self, command: str, rest: str) -> None:
        """A line: its first word, and the rest of it."""
        if not command.startswith("/"):
            if command:
                self._ask(f"{command} {rest}".strip())
        elif command in ("/image", "/video"):
            self._add(command, rest)
        elif command == "/reset":
            self._turns, self._pictures = [], []
            self.say("(a new conversation)")
        elif command == "/help":
            self.say(HELP)
        else:
            self.say(f"(no command {command}; /help lists those there are)")

    def _add(self, command: str, given: str) -> None:
        kind = "video" if command == "/video" else "picture"
        quoted = len(given) > 1 and given[0] == given[-1] and given[0] in "'\""
        path = given[1:-1] if quoted else given
        if not path:
            return self.say(f"(which {kind}? {command} FILE)")
        media = (video if kind == "video" else picture)(Path(path).expanduser())
        try:
            if media.is_video:
                prepare_video(media, 8, count=1)
            else:
                load_image(media)
        except (BadSample, ModuleNotFoundError) as error:
            return self.say(f"(not added: {_in_one_line(error)})")
        self._pictures.append(media)
        self.say(f"({kind} {len(self._pictures)} of the next message: {path})")

    def _ask(self, message: str) -> None:
        """A message that is not answered leaves no trace, and neither do its pictures."""
        turn = Turn("user", (*self._pictures, Text(message)))
        dialogue = Example("the message", (*self._turns, turn))
        self._pictures, said, is_stopped = [], [], False
        try:
            prompt = self._answerer.prompt(
                last_question(dialogue, takes_history=self._takes_history)
            )
            for piece in pieces(self._answerer, prompt, row_seed(self._seed, self._asked)):
                said.append(piece)
                self._out.write(piece)
                self._out.flush()
        except (BadSample, ModuleNotFoundError) as error:
            remedy = "; /reset starts a new conversation" if self._turns else ""
            return self.say(f"(left out, pictures too: {_in_one_line(error)}{remedy})")
        except KeyboardInterrupt:
            is_stopped = True
        self.say(" (stopped)" if is_stopped else "")
        if said or not is_stopped:
            self._asked += 1
            self._turns += [turn, Turn("assistant", (Text("".join(said)),))]


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _listed(answer: Answer) -> str:
    if len(answer.texts) == 1:
        return answer.texts[0]
    scores = [""] * len(answer.texts)
    if answer.scores is not None:
        scores = [f"{score:.4f}  " for score in answer.scores]
    numbered = enumerate(zip(scores, answer.texts, strict=True), start=1)
    return "\n".join(f"{number}  {score}{text}" for number, (score, text) in numbered)
