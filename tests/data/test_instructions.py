"""Instructions that a text model writes: prompts, replies, and the folder builder."""

import json

import pytest
from data.chat_server import ChatServer, serving

from mmjax.data import chat_client
from mmjax.data.instructions.builder import Settings, build
from mmjax.data.instructions.easy_vqa import easy_vqa_folder, easy_vqa_regions
from mmjax.data.instructions.prompts import KINDS, TEXTS, Prompts, read_texts
from mmjax.data.instructions.replies import Group, Quality, parse_reply
from mmjax.data.instructions.writers import EasyVQAWriter, Written, load_writer
from mmjax.data.outcomes import MAX_FAILED
from mmjax.data.recorded import prompt_hash
from mmjax.data.regions import Region, read_regions
from mmjax.data.sources import make_source
from mmjax.data.sources.easy_vqa_lrv import VALUES
from mmjax.data.sources.lrv import TASKS

TABLE, SKY = Region("a wooden table", (3, 40.5, 200, 90)), Region("blue sky", (0, 0, 500, 60))


def group(prompt: str, what: str = "red") -> str:
    """As the prompt asks for it."""
    if "Reason:" in prompt:
        return f"Instruction:\nIs it {what}?\nReason:\nNo, brown.\n"
    return f"Instruction:\nIs it {what}?\nAnswer:\nNo, brown.\nTask:\nOCR\n"


# Prompts


def test_the_layout_is_the_original_ones():
    positive = Prompts(words=12).compose("positive", [TABLE, SKY], ["ocr", "object detection"])
    assert positive.split("\n\n") == [
        TEXTS["header"],
        "bounding box:\na wooden table X: 3 Y: 40.5 Width: 200 Height: 90\n"
        "blue sky X: 0 Y: 0 Width: 500 Height: 60",
        "Task: ocr, object detection",
        TEXTS["positive"].replace("{count}", "20").replace("{words}", "12"),
        TEXTS["format_positive"] + "\n",
    ]
    assert "20 different" in positive and "fewer than 12 words" in positive
    prompts = {kind: Prompts().compose(kind, [TABLE], ["ocr"]) for kind in KINDS}
    for kind in KINDS[1:]:
        assert "6 misleading" in prompts[kind] and "Task" not in prompts[kind]
        assert prompts[kind].endswith("Reason:\nthe reason\n") and "{" not in prompts[kind]
    assert len(set(prompts.values())) == 4


def test_without_coordinates():
    prompt = Prompts(coordinates=False).compose("neg1", [TABLE, SKY], [])
    assert "\n\ncaptions:\na wooden table\nblue sky\n\n" in prompt
    assert "X:" not in prompt and "Width" not in prompt and "not in numbers" in prompt


def test_texts_of_your_own(tmp_path):
    (tmp_path / "neg1.txt").write_text("Lie {count} times, {so} to speak.\n")
    texts = read_texts(tmp_path)
    assert "\nLie 6 times, {so} to speak.\n" in Prompts(texts).compose("neg1", [TABLE], [])
    assert texts["neg2"] == TEXTS["neg2"]
    (tmp_path / "neg9.txt").write_text("")
    with pytest.raises(ValueError, match="no prompt is called neg9; there are header.txt, "):
        read_texts(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder of prompts"):
        read_texts(tmp_path / "gone")


# Replies

WANTED = [Group("Is it red?", "No, it is brown.", "OCR"), Group("Name it.", "A table.", "VQA")]
SPELLINGS = [
    "Instruction:\nIs it red?\nAnswer:\nNo, it is brown.\nTask:\nOCR\n\n"
    "Instruction:\nName it.\nAnswer:\nA table.\nTask:\nVQA",
    "1. Instruction: Is it red?\nAnswer: No, it is brown.\nTask: OCR\n"
    "2. Instruction: Name it.\nAnswer: A table.\nTask: VQA",
    "Sure!\n\n1.\n**INSTRUCTION:** Is it red?\n**Answer**: No, it\nis brown.\n- task: OCR\n\n"
    "---\n2.\n"
    '### Instruction 2:\n"Name it."\n\nANSWER 2: A table.\nTASK 2: VQA\n\n3)\n',
    "Instruction\uff1aIs it red?\nReason:No, it is brown.\nTask:OCR\n"
    "  question: Name it.\n  answer: A table.\n  task: VQA\n",
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_replies_in_many_spellings(text):
    assert parse_reply(text, positive=True) == (WANTED, 0)
    assert parse_reply(text, positive=False)[0] == [
        Group(group.instruction, group.answer) for group in WANTED
    ]


def test_incomplete_instructions_are_counted():
    text = (
        "Answer: lost\nInstruction: A?\nTask: OCR\nInstruction: B?\nAnswer: b\nAnswer: c\nTask: x"
    )
    assert parse_reply(text, positive=True) == ([], 4)
    assert parse_reply(text, positive=False) == ([Group("B?", "b")], 3)
    assert parse_reply("I would rather not. The task: none", positive=True) == ([], 0)
    cut = "Instruction: A?\nAnswer: a\nTask: OCR\nInstruction: B?\nAns"
    assert parse_reply(cut, positive=True) == ([Group("A?", "a", "OCR")], 1)


def test_quality():
    good = Group("Describe the cardboard box with a caption.", "It is on the table.", "")
    wrong = {
        "more than 30 words": Group("?", "word " * 31),
        "captions": Group("What do the captions say?", "Nothing."),
        "boxes": Group("?", "It is in the bounding box."),
        "descriptions": Group("?", "Not in the existing description."),
        "facial": Group("?", "His facial expression is happy."),
    }
    numbers = [
        Group("Is it at X: 12?", "No."),
        Group("?", "At (12, 30)."),
        Group("Coordinates?", ""),
    ]
    assert Quality(coordinates=True).problem(good) is None
    for reason, group in wrong.items():
        assert reason in Quality().problem(group)
        assert Quality(max_words=0, mentions=False, faces=False).problem(group) is None
    for group in numbers:
        assert Quality(coordinates=True).problem(group) == "it has coordinates"
        assert Quality().problem(group) is None


# The builder


class Scripted:
    """Answers with two instructions, one of them about captions; fails where it is told to."""

    def __init__(self, fails=()):
        self.fails, self.asked = set(fails), []

    def __call__(self, asked):
        self.asked.append((asked.regions, asked.kind))
        if len(self.asked) - 1 in self.fails:
            error = RuntimeError("out of paper")
            error.usage = {"requests": 3}
            raise error
        text = group(asked.prompt) + group(asked.prompt, "in the captions") + "Instruction: half"
        return Written(text, {"requests": 1, "cost": 0.5})


PICTURES = {f"{n}": (TABLE, SKY)[: n % 3] for n in range(9)}  # every third has no region


def made(out, writer, settings=None, quality=None, **options):
    how = Prompts(), settings or Settings(seed=3), quality or Quality()
    return build(PICTURES, writer, *how, out, made_by={"w": 1}, **options)


def test_everything_is_accounted_for(tmp_path):
    writer = Scripted(fails={1, 6})
    report = made(tmp_path, writer)
    assert dict(report.counts) == dict(
        pictures=6, too_few_regions=3, replies=22, failed=2, instructions=22
    )
    assert report.kinds == dict(positive=6, neg1=5, neg2=5, neg3=6)
    assert dict(report.reasons) == {
        "left out: it speaks of captions, boxes or descriptions": 22,
        "left out: an incomplete instruction": 22,
        "failed: RuntimeError: out of paper": 2,
    }
    assert report.usage == dict(requests=22 + 6, cost=11.0)
    assert "usage: 11.0 cost, 28 requests" in str(report)
    source = make_source(f"lrv:{tmp_path}/instructions.json?images=/x", "train")
    assert len(source) == 22 and sorted(set(source.kinds)) == sorted(KINDS)
    assert source[0].info["task"] == "ocr" and source[0].text("assistant") == "No, brown."
    # What is left out is decided anew, without a request.
    more = made(tmp_path, writer, quality=Quality(mentions=False))
    assert more.counts["instructions"] == 44 and more.was_complete and len(writer.asked) == 24


def test_tasks_and_seeds_are_drawn_for_each_picture(tmp_path):
    seen = []

    def writer(asked):
        seen.append((asked.prompt.split("Task: ")[1].split("\n")[0].split(", "), asked.seed))
        return Written(group(asked.prompt))

    made(tmp_path / "a", writer, Settings(kinds=("positive",), tasks_per_picture=3))
    assert all(len(set(tasks)) == 3 and set(tasks) <= set(TASKS) for tasks, _ in seen)
    assert len({tuple(tasks) for tasks, _ in seen}) > 3 and len({seed for _, seed in seen}) == 6
    first = list(seen)
    made(tmp_path / "b", writer, Settings(kinds=("positive",), tasks_per_picture=3))
    assert seen[6:] == first


def test_killed_at_any_moment_it_asks_nobody_twice(tmp_path):
    whole = made(tmp_path / "whole", Scripted())
    for killed in (0, 1, 7, 23):
        out, writer = tmp_path / str(killed), Scripted()

        def stopping(asked, writer=writer, killed=killed):
            if len(writer.asked) == killed:
                raise KeyboardInterrupt
            return writer(asked)

        with pytest.raises(KeyboardInterrupt):
            made(out, stopping)
        partial = out / "outcomes.jsonl.partial"
        partial.write_bytes(partial.read_bytes() + b'{"source": "half a li')
        report = made(out, writer)
        assert len(writer.asked) == 24 and report.counts == whole.counts
        for name in ("instructions.json", "outcomes.jsonl", "report.json"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ValueError, match="settings.seed: 3 there, 4 now"):
        made(out, writer, Settings(seed=4))


def test_what_fails_every_time_stops_and_is_tried_again(tmp_path):
    with pytest.raises(ValueError, match=f"{MAX_FAILED} requests in a row failed") as caught:
        made(tmp_path, Scripted(fails=range(2, 99)))
    assert str(caught.value).endswith("\n  RuntimeError: out of paper")
    writer = Scripted()
    assert made(tmp_path, writer).counts["replies"] == 24 and len(writer.asked) == 22


def test_wrong_settings(tmp_path):
    with pytest.raises(ValueError) as caught:
        Settings(kinds=("neg4", "neg1", "neg1"), tasks=("ocr",))
    for text in ("no kind neg4", "each kind once", "must be 1 to 1, the number of tasks; got 10"):
        assert text in str(caught.value)
    with pytest.raises(ValueError, match="none of 9 pictures has 3 regions"):
        made(tmp_path, Scripted(), Settings(min_regions=3))


# Writers


def test_a_model_behind_an_address(tmp_path, monkeypatch):
    """Through a server that fails now and then; its replies, recorded, are as good as itself."""
    monkeypatch.setattr(chat_client.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    with serving(ChatServer(lambda body: group(body["messages"][0]["content"]))) as server:
        server.plan += [(429, {"Retry-After": "0"}), "no instruction at all", "half"]
        options = "key_env=TEST_KEY&model=parrot&prompt_price=1"
        writer = load_writer(f"chat-api?base_url={server.url}&{options}")
        report = made(tmp_path / "asked", writer)
        assert report.usage["requests"] == len(server.seen) == 24 + 3
        assert report.usage["cost"] == pytest.approx(25 * 100 / 1e6)
        assert {body["temperature"] for _, body in server.seen} == {0.7}
    assert report.counts["instructions"] == 24
    for path in (tmp_path / "asked").iterdir():
        assert "sk-secret" not in path.read_text()
    writer = load_writer(f"recorded?path={tmp_path}/asked/outcomes.jsonl")
    assert made(tmp_path / "again", writer).kinds == report.kinds
    again = (tmp_path / "again/instructions.json").read_bytes()
    assert again == (tmp_path / "asked/instructions.json").read_bytes()
    other = made(tmp_path / "other", writer, Settings(kinds=("positive",), seed=9))
    assert other.counts["failed"] == 6 and "has no reply to this prompt" in str(other)
    with pytest.raises(ValueError, match="no line has the fields 'prompt_sha256' and 'reply'"):
        (tmp_path / "x.jsonl").write_text(json.dumps({"prompt_sha256": prompt_hash("")}))
        load_writer(f"recorded?path={tmp_path / 'x.jsonl'}")


def test_rules_for_easy_vqa(tmp_path):
    """Twenty positive and six of each negative a picture, all of them different."""
    pictures = easy_vqa_regions("dev", 4)
    (region,) = next(iter(pictures.values()))
    assert all(any(word in region.caption for word in words) for words in VALUES.values())
    x, y, width, height = region.box
    assert 0 <= x < x + width <= 64 and 0 <= y < y + height <= 64
    how = Prompts(), Settings(), Quality()
    report = build(pictures, EasyVQAWriter(), *how, tmp_path, made_by={})
    assert report.kinds == dict(positive=80, neg1=24, neg2=24, neg3=24)
    assert read_regions(tmp_path / "regions.json").of == pictures
    options = f"images={easy_vqa_folder('dev')}&extension=png"
    source = make_source(f"lrv:{tmp_path}/instructions.json?{options}", "train")
    assert len({(e.info["image_id"], e.info["question"], e.info["kind"]) for e in source}) == 152
    for example in source:
        assert example.media[0].data.is_file()
        answer, negative = example.text("assistant"), example.info["negative"]
        assert answer.startswith("no. there is a ") if negative else not answer.startswith("no")
        assert negative or example.info["task"] in TASKS
    with pytest.raises(ValueError, match="no fact place"):
        EasyVQAWriter("colour,place")
    with pytest.raises(ValueError, match="the rules are for one region"):
        made(tmp_path / "photos", EasyVQAWriter())
