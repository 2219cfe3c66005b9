"""GAVIE: prompts, scores read from replies, and judging that loses and repeats nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data.chat_server import ChatServer, serving

from mmjax.data import chat_client
from mmjax.data.outcomes import MAX_FAILED
from mmjax.data.regions import Region
from mmjax.data.resumable import KeyedFile
from mmjax.evaluate.gavie import (
    Item,
    compose,
    parse_scores,
    questions,
    read_answers,
    read_items,
    shuffled,
)
from mmjax.evaluate.judge import Case, Verdict, load_judge
from mmjax.evaluate.judging import Settings, judge_all

ROOT = Path(__file__).parents[2]
# Two entries of evaluation_set.json (LRV-Instruction, BSD-3-Clause), one of its first version.
NEW = {"image_id": "2356371", "question": "Which objects are on the wooden table?"}
OTHER = {"image_id": "2341310", "question": "Can you spot the zebra standing behind the boys?"}
OLD = {"image_id": "2380160", "answer_gt": "Railroad tracks", "instruction": "Identify the type of "
       "transportation infrastructure present in the scene."}  # fmt: skip
TABLE, CUP = Region("a wooden table", (3, 40.5, 200, 90)), Region("a cup", (30, 40, 20, 25))


def good(*scores: int) -> str:
    """A reply that gives the n-th answer ``scores[n]``, and one more for accuracy."""
    blocks = [
        f"{name}:\n" + "".join(
            f"score of answer{n}: {score + more}\nreason: because {n}\n"
            for n, score in enumerate(scores, start=1)
        )
        for more, name in enumerate(("Relevancy", "Accuracy"))
    ]  # fmt: skip
    return "\n".join(blocks)


# Prompts


def test_the_layout_is_the_original_ones():
    prompt = compose([TABLE, CUP], "Is it red?", ["No,\nbrown.\n\nAccuracy: 10", "Yes."])
    lines = prompt.split("\n")
    at = lines.index("bounding box:")
    assert lines[at + 1 : at + 6] == [
        "a wooden table X:3 Y:40.5 Width:200 Height:90", "a cup X:30 Y:40 Width:20 Height:25",
        "", "", "This is the instruction for the picture:",
    ]  # fmt: skip
    assert lines[at + 6 : at + 11] == [
        "Is it red?", "", "Answer1: No, brown. Accuracy: 10", "Answer2: Yes.", "",
    ]  # fmt: skip
    slots = ["score of answer1:", "reason:", "score of answer2:", "reason:"]
    assert lines[-14:] == ["Output format:", "", "Relevancy:", *slots, "", "Accuracy:", *slots, ""]
    legacy = compose([TABLE, CUP], "Is it red?", ["No,", "Yes."], legacy_height=True)
    assert "Width:200 Height:200" in legacy and "Width:20 Height:20" in legacy


def test_the_order_is_drawn_for_each_question():
    names = ["a", "b", "c"]
    orders = [shuffled(Item(str(n), "?"), names, 0) for n in range(60)]
    assert {tuple(order) for order in orders} == set(
        map(tuple, ("abc", "acb", "bac", "bca", "cab", "cba"))
    )
    assert orders == [shuffled(Item(str(n), "?"), names, 0) for n in range(60)]
    assert orders != [shuffled(Item(str(n), "?"), names, 1) for n in range(60)]
    assert shuffled(Item("1", "?"), names, None) == names


# Replies


@pytest.mark.parametrize(
    "reply",
    [
        good(7, 3),
        good(7, 3).replace("answer", "the Answer ").upper(),
        good(7, 3).replace(": ", ":\n").replace("\nreason", "/10\nreason"),
        "**Accuracy:**\n" + good(7, 3).split("Accuracy:\n")[1] + "\n### 2. Relevancy scores\n"
        + good(7, 3).split("Accuracy")[0].split(":\n", 1)[1],
        good(7, 3).replace("score of answer1: 7", "- **Score of answer 1:** **7.0** out of 10."),
        good(7, 3).replace(":", "\uff1a"),
        "Here are the scores.\n\n" + good(7, 3) + good(7, 3),  # twice the same
        good(7, 3).replace("because 1", "it says 3/10 of\n\nwhat the score could be, 8 at most"),
    ],
)  # fmt: skip
def test_replies_that_can_be_read(reply):
    scores = parse_scores(reply, 2)
    assert [score.score for score in scores["relevancy"]] == [7, 3]
    assert [score.score for score in scores["accuracy"]] == [8, 4]
    assert scores["accuracy"][1].reason.lower() == "because 2"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("score of answer2: 3\n", ""), "relevancy of answer 2: missing"),
        (("Accuracy", "Fluency"), "relevancy of answer 1: both 7 and 8"),
        (("Relevancy:", "Scores:"), "relevancy of answer 1: missing"),
        (("answer1: 7", "answer1: 11"), "relevancy of answer 1: 11 is not from 0 to 10"),
        (("answer1: 7", "answer1: -1"), "relevancy of answer 1: -1 is not from 0 to 10"),
        (("answer1: 7", "answer1: 7/100"), "7/100 is not from 0 to 10"),
        (("answer1: 7", "answer1: 7/5"), "7/5 is not from 0 to 10"),
        (("answer1: 7", "answer1: 7-8"), "not one number: '7-8"),
        (("answer1: 7", "answer1: 7 or 8"), "not one number"),
        (("answer1: 7", "answer1: 7,5"), "not one number"),
        (("answer1: 7", "answer1: 7th"), "not one number"),
        (("answer1: 7", "answer1:"), "not one number: 'reason: because 1'"),
        (("answer1: 7", "answer1: N/A"), "not one number"),
        (("answer1: 7", "answer3: 7"), "answer 3: there are 2 answers"),
        (("because 2", "because 2\nscore of answer1: 5"), "both 7 and 5"),
    ],
)
def test_what_could_mean_two_things_means_nothing(change, problem):
    with pytest.raises(ValueError) as caught:
        parse_scores(good(7, 3).replace(*change, 1), 2)
    assert problem in str(caught.value)
    with pytest.raises(ValueError, match="accuracy of answer 2: missing"):
        parse_scores("I cannot see the picture.", 2)


# Files


def write(path, rows):
    is_list = path.suffix == ".json"
    path.write_text(json.dumps(rows) if is_list else "".join(json.dumps(x) + "\n" for x in rows))
    return path


def test_questions_of_both_versions_and_their_answers(tmp_path):
    path = write(tmp_path / "evaluation_set.json", [NEW, OLD, NEW, OTHER])
    items, repeats = read_items(path)
    assert repeats == 1 and items == [
        Item(row["image_id"], row.get("question") or row["instruction"])
        for row in (NEW, OLD, OTHER)
    ]
    rows = questions(items, "vg", "jpg")
    assert rows[0]["image"] == "vg/2356371.jpg" and rows[0]["question"] == NEW["question"]
    generated = [{"id": row["id"], "answer": f"answer {n}"} for n, row in enumerate(rows)]
    named = [
        {"image_id": "2356371", "question": NEW["question"], "answer": "answer 0"},
        {"image": "/x/2380160.jpg", "instruction": OLD["instruction"], "answer": "answer 1"},
        {"image_id": 2341310, "question": OTHER["question"], "answer": "answer 2"},
    ]
    for name, rows in (("a.jsonl", generated), ("b.jsonl", named), ("c.json", named)):
        found = read_answers(write(tmp_path / name, [*rows, rows[0]]))
        assert found == {item: f"answer {n}" for n, item in enumerate(items)}
    bad = [{"id": 1, "answer": "x"}, {"answer": 2, "id": "1: ?"}, {"id": "1: ?", "error": "e"}]
    bad += [named[0], named[0] | {"answer": "y"}]
    with pytest.raises(ValueError) as caught:
        read_answers(write(tmp_path / "d.jsonl", bad))
    head, *lines = str(caught.value).split("\n  ")
    assert "3 bad lines" in head and "line 1: it has neither 'image_id'" in lines[0]
    assert "line 2: field 'answer'" in lines[1] and "line 5: another answer to '2356371" in lines[2]


# Judging

ITEMS = [Item(str(n), f"Is it number {n}?") for n in range(12)]
REGIONS = {item.image_id: (TABLE, CUP) for item in ITEMS}
ANSWERS = {name: {item: f"{name} says {item.image_id}" for item in ITEMS} for name in "ab"}


class Scripted:
    """Gives ``a`` an 8 for relevancy and ``b`` a 2, wherever they stand; misbehaves as planned:
    number of the request -> reply, or an exception."""

    def __init__(self, plan=None, name="scripted"):
        self.plan, self.identity, self.asked = dict(plan or {}), {"judge": name}, []

    def __call__(self, case: Case, attempt: int) -> Verdict:
        number = len(self.asked)
        self.asked.append((case.question, attempt))
        reply = self.plan.get(number)
        if isinstance(reply, BaseException):
            raise reply
        scores = [8 if answer.startswith("a says") else 2 for answer in case.answers]
        return Verdict(good(*scores) if reply is None else reply, {"requests": 1})


def judged(out, judge, settings=None, answers=None, items=ITEMS, regions=REGIONS):
    return judge_all(items, answers or ANSWERS, regions, judge, settings or Settings(), out)


def lines(out):
    return [json.loads(line) for line in (out / "judgements.jsonl").read_text().splitlines()]


def test_scores_find_their_models(tmp_path):
    judge = Scripted()
    summary = judged(tmp_path, judge)
    assert summary.means == {"a": dict(relevancy=8, accuracy=9), "b": dict(relevancy=2, accuracy=3)}
    assert summary.counts["judged"] == 12 and summary.usage == {"requests": 12}
    assert len({tuple(row["answers"]) for row in lines(tmp_path)}) == 2  # both orders were shown
    assert lines(tmp_path)[0]["scores"]["b"]["accuracy"]["score"] == 3
    table = str(summary).split("\n")
    assert table[:3] == ["model  relevancy  accuracy", "a           8.00      9.00",
                         "b           2.00      3.00"]  # fmt: skip
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["means"] == summary.means and written["judge"] == {"judge": "scripted"}
    prompts = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [row["key"] for row in prompts] == [row["key"] for row in lines(tmp_path)]


def test_nothing_is_asked_twice_and_what_changed_is_asked_anew(tmp_path):
    judged(tmp_path, Scripted())
    again = Scripted()
    assert judged(tmp_path, again).counts["judged"] == 12 and not again.asked
    changed = {"a": ANSWERS["a"] | {ITEMS[3]: "a says something else"}, "b": ANSWERS["b"]}
    judged(tmp_path, again, answers=changed)
    assert [question for question, _ in again.asked] == [ITEMS[3].question]
    for other, settings in (
        (Scripted(name="other"), None),
        (Scripted(), Settings(legacy_height=True)),
    ):
        judged(tmp_path, other, settings)
        assert len(other.asked) == 12
    fewer = Scripted()
    assert judged(tmp_path, fewer, items=ITEMS[:5]).counts["judged"] == 5 and not fewer.asked


def test_replies_that_cannot_be_read_are_no_zeros(tmp_path):
    """Asked again as often as said, then reported; what is not there has no part in the means."""
    judge = Scripted({0: "hm", 2: good(7), 3: good(11, 12), 4: "never"})
    summary = judged(tmp_path, judge)
    assert judge.asked[:6] == [
        (ITEMS[0].question, 0), (ITEMS[0].question, 1), (ITEMS[1].question, 0),
        (ITEMS[1].question, 1), (ITEMS[1].question, 2), (ITEMS[2].question, 0),
    ]  # fmt: skip
    assert summary.means["a"]["relevancy"] == 8 and summary.means["b"]["accuracy"] == 3
    assert (summary.counts["judged"], summary.counts["unparsed"]) == (11, 1)
    assert summary.usage == {"requests": 15}
    assert "1 replies could not be read: '1: Is it number 1?' (relevancy of answer 1" in str(
        summary
    )
    again = Scripted()
    judged(tmp_path, again)
    assert not again.asked
    assert judged(tmp_path, again, Settings(asks=4)).counts["judged"] == 12
    assert again.asked == [(ITEMS[1].question, 3)]
    nothing = judged(tmp_path / "x", Scripted(dict.fromkeys(range(99), "?")), Settings(asks=1))
    assert nothing.counts["judged"] == 0 and nothing.means == {}


def test_no_reply_is_counted_and_asked_for_at_the_next_start(tmp_path):
    error = chat_client.Unanswered("the line is dead", {"requests": 3})
    summary = judged(tmp_path, Scripted({4: error, 7: RuntimeError("bug")}))
    assert (summary.counts["judged"], summary.counts["failed"]) == (10, 2)
    assert summary.usage == {"requests": 13} and "the line is dead" in str(summary)
    again = Scripted()
    assert judged(tmp_path, again).counts["judged"] == 12 and len(again.asked) == 2
    with pytest.raises(ValueError, match=f"no reply to {MAX_FAILED} questions in a row"):
        judged(tmp_path / "x", Scripted(dict.fromkeys(range(2, 99), error)))
    assert judged(tmp_path / "x", again).counts["judged"] == 12 and len(again.asked) == 12


def test_what_cannot_be_judged_is_named(tmp_path):
    answers = {
        "a": dict.fromkeys(ITEMS[2:], "yes") | {Item("99", "?"): "no"},
        "b": ANSWERS["b"],
    }
    regions = {k: v for k, v in REGIONS.items() if k not in ("0", "5")}
    summary = judged(tmp_path, Scripted(), answers=answers, regions=regions)
    assert dict(summary.counts) == {
        "questions": 12, "unanswered": 2, "without regions": 1, "judged": 9, "unparsed": 0,
        "failed": 0,
    }  # fmt: skip
    assert summary.problems[0].startswith("a: no answer to 2 of 12 questions: '0: Is it number 0?'")
    assert summary.problems[1].startswith("a: answers to what is not asked: 1 of 12 questions: '99")
    assert "no regions of the picture of 2 of 12 questions: '0: " in summary.problems[2]
    with pytest.raises(ValueError, match="no question can be judged:\n  a: no answer to 12 of 12"):
        judged(tmp_path, Scripted(), answers={"a": {}})


def test_a_file_that_was_cut_short_is_read(tmp_path):
    judged(tmp_path, Scripted(), items=ITEMS[:4])
    file = tmp_path / "judgements.jsonl"
    whole = file.read_bytes()
    for cut in (1, 10, len(whole.splitlines()[-1])):
        file.write_bytes(whole[:-cut])
        judge = Scripted()
        assert judged(tmp_path, judge, items=ITEMS[:4]).counts["judged"] == 4
        assert len(judge.asked) == 1 and file.read_bytes() == whole
    file.write_bytes(b"x" + whole)
    with pytest.raises(ValueError, match="judgements.jsonl, line 1 is damaged"):
        judged(tmp_path, Scripted())
    assert file.read_bytes() == b"x" + whole


def test_two_processes_do_not_write_one_file(tmp_path):
    first = KeyedFile(tmp_path / "judgements.jsonl")
    with pytest.raises(ValueError, match=r"another process writes .*judgements\.jsonl"):
        judged(tmp_path, Scripted())
    first.close()
    assert judged(tmp_path, Scripted()).counts["judged"] == 12


# Judges


def test_recorded_replies_are_as_good(tmp_path):
    first = judged(tmp_path / "a", Scripted({0: "hm"}))
    judge = load_judge(f"recorded?path={tmp_path / 'a/judgements.jsonl'}")
    again = judged(tmp_path / "b", judge)
    assert again.means == first.means and again.counts == first.counts
    other = judged(tmp_path / "c", judge, Settings(seed=5))
    assert 0 < other.counts["failed"] < 12 and "no reply to this prompt" in str(other)


def test_rules(tmp_path):
    judge = load_judge("rules")
    answers = dict(
        right=dict.fromkeys(ITEMS, "There is a cup on a wooden table."),
        wrong=dict.fromkeys(ITEMS, "Yes, a dog."),
        empty=dict.fromkeys(ITEMS, " ..."),
    )
    summary = judged(tmp_path, judge, answers=answers)
    assert summary.means["right"]["accuracy"] == 10 > summary.means["wrong"]["accuracy"] == 0
    assert summary.means["wrong"]["relevancy"] == 10 > summary.means["right"]["relevancy"] == 5
    assert summary.means["empty"] == dict(relevancy=0, accuracy=0)
    for answer, question, score in (
        ("Yes.", "Is there a cup?", 10), ("No.", "Is there a cup?", 0),
        ("no", "Is there a dog?", 10), ("yes", "Is there a dog on the table?", 5),
    ):  # fmt: skip
        reply = judge(Case([TABLE, CUP], question, [answer], ""), 0).reply
        assert parse_scores(reply, 1)["accuracy"][0].score == score, (answer, question)
    with pytest.raises(ValueError, match="no judge named 'gpt'; known: chat-api, recorded, rules"):
        load_judge("gpt")
    with pytest.raises(ValueError, match="has no identity"):
        load_judge("data.edits_stub:Inverting")


# Through a server that misbehaves


def served(body) -> str:
    shown = [line for line in body["messages"][0]["content"].split("\n") if line[:6] == "Answer"]
    return good(*(8 if "a says" in line else 2 for line in shown))


def test_a_server_that_misbehaves(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_client.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    plan = ["slow", (429, {"Retry-After": "0"}), (500, {}), "torn", "half", "reset", "nothing"]
    with serving(ChatServer(served)) as server:
        server.plan += [*plan, "I would say 8, or 9.", good(8)]
        options = "key_env=TEST_KEY&model=parrot&timeout=0.3&retries=8&prompt_price=1"
        judge = load_judge(f"chat-api?base_url={server.url}&{options}")
        summary = judged(tmp_path, judge)
        assert summary.counts["judged"] == 12 and len(server.seen) == 12 + len(plan) + 2
        assert summary.usage["requests"] == len(server.seen)
        assert summary.usage["cost"] == pytest.approx(14 * 100 / 1e6)
        assert {body["temperature"] for _, body in server.seen} == {0.0}
        assert judged(tmp_path, judge).counts["judged"] == 12
        assert len(server.seen) == 12 + len(plan) + 2
    assert summary.means["a"]["accuracy"] == 9
    for path in tmp_path.iterdir():
        assert "sk-secret" not in path.read_text()


def test_killed_in_the_middle_it_pays_for_none_twice(tmp_path):
    """SIGKILL while a request is under way, then the same command."""
    rows = [{"image_id": item.image_id, "question": item.question} for item in ITEMS]
    write(tmp_path / "set.json", rows)
    for name, given in ANSWERS.items():
        found = [row | {"answer": given[item]} for row, item in zip(rows, ITEMS, strict=True)]
        write(tmp_path / f"{name}.jsonl", found)
    regions = {item.image_id: [{"caption": "a cup", "bbox": [1, 2, 3, 4]}] for item in ITEMS}
    (tmp_path / "regions.json").write_text(json.dumps(regions))
    with serving(ChatServer(served)) as server:
        planned = [(429, {"Retry-After": "0"}), "hm"]
        server.plan += [*planned, *[good(8, 2)] * 4, "slow"]
        command = [
            sys.executable, ROOT / "scripts/evaluate.py", "gavie", f"--out={tmp_path / 'out'}",
            f"--evaluation_set={tmp_path / 'set.json'}", f"--annotations={tmp_path}/regions.json",
            f"--answers=a={tmp_path}/a.jsonl", f"--answers=b={tmp_path}/b.jsonl",
            f"--judge=chat-api?base_url={server.url}&model=parrot",
        ]  # fmt: skip
        environment = os.environ | {"no_proxy": "*", "OPENAI_API_KEY": "sk-secret"}
        environment["PYTHONPATH"] = str(ROOT)
        running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(server.seen) < 7 and time.monotonic() < deadline and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert len(server.seen) == 7, running.stderr.read().decode()
        assert len(lines(tmp_path / "out")) == 5  # one of them cannot be read
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "4 of 12 questions are judged already" in done.stderr
        assert "12 judged, 0 unparsed, 0 failed" in done.stdout
        assert len(server.seen) == len(ITEMS) + len(planned) + 1  # the one that was cut short
    everything = done.stdout + done.stderr + (tmp_path / "out/judgements.jsonl").read_text()
    assert "sk-secret" not in everything


def test_settings():
    with pytest.raises(ValueError, match="asks must be at least 1"):
        Settings(asks=0)
