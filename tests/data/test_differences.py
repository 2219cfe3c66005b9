"""Pairs of pictures that differ in one thing: the rules for easy-VQA, and the folder builder."""

import collections
import http.server
import json
import random
import re
import shutil
import threading

import numpy as np
import pytest
from data import edits_stub as stub
from PIL import Image

from mmjax.data import chat_client
from mmjax.data.chat_client import Unanswered
from mmjax.data.differences import chat_api
from mmjax.data.differences.builder import Parts, Settings, build
from mmjax.data.differences.easy_vqa import RuleEditor, RuleSegmenter, RuleText
from mmjax.data.differences.interfaces import KINDS, Scene, Segment, Unfit
from mmjax.data.differences.plugins import load
from mmjax.data.images import load_image
from mmjax.data.outcomes import MAX_FAILED
from mmjax.data.sources import make_source
from mmjax.data.sources.easy_vqa import COLOURS, SHAPES, captioned, picture
from mmjax.data.sources.easy_vqa_edits import INSTRUCTION, Thing, apply, sentence, take_apart

VOCABULARY = set(
    "the shape is in first picture and second there a no that not . describe difference between "
    "pictures".split()
) | {*COLOURS, *SHAPES}


def words(text: str) -> list[str]:
    return re.findall(r"\w+|\.", text.lower())


def frames(count: int):
    """(number, facts, picture) of the first pictures that the questions tell all about."""
    known = [(n, facts) for n, facts in captioned("dev") if facts.colour and facts.shape]
    return [(n, facts, np.asarray(load_image(picture("dev", n)))) for n, facts in known[:count]]


# The rules


def test_pictures_are_read_as_their_questions_say():
    for number, facts, frame in frames(200):
        parts = take_apart(frame)
        assert parts.thing == Thing(facts.colour, facts.shape), number
        again = Segment(parts.alpha > 0, "")
        assert (frame[~again.mask] == parts.background).all()


@pytest.mark.parametrize("kind", KINDS)
def test_edits_are_what_they_say(kind):
    """Read again, the edited picture shows what it should, and the rest is as it was."""
    rng = random.Random(0)
    for number, _, frame in frames(60):
        before = take_apart(frame)
        after = before.thing.edited(kind, rng)
        edited = apply(frame, kind, after, seed=number)
        assert edited.dtype == np.uint8 and edited.shape == frame.shape
        changed = (edited != frame).any(-1)
        if kind == "delete":
            assert after is None and (edited == before.background).all()
            assert (changed == (before.alpha > 0)).mean() > 0.99
        elif kind == "add":
            assert not (changed & (before.alpha > 0)).any() and after != before.thing
            alone = np.where(changed[..., None], edited, before.background.astype(np.uint8))
            assert take_apart(alone).thing == after, number
        else:
            assert take_apart(edited).thing == after, number
            assert (after.shape == before.thing.shape) == (kind == "modify")
            assert (after.colour == before.thing.colour) == (kind == "swap")
            if kind == "modify":  # soft edges, in the new colour
                assert np.abs(take_apart(edited).alpha - before.alpha).max() < 0.02
            left, top, right, bottom = Segment(before.alpha > 0, "").box
            changed[top:bottom, left:right] = False
            assert not changed.any()


def test_sentences():
    red, blue = Thing("red", "circle"), Thing("blue", "triangle")
    assert [sentence(kind, red, blue) for kind in KINDS] == [
        "the shape is red in the first picture and blue in the second picture.",
        "there is a circle in the first picture and a triangle in the second picture.",
        "there is a red circle in the first picture and no shape in the second picture.",
        "there is a blue triangle in the second picture that is not in the first picture.",
    ]


def test_other_pictures_are_unfit():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    flat = np.full((64, 64, 3), 240, np.uint8)
    pink = flat.copy()
    pink[20:40, 20:40] = (255, 100, 200)
    for frame, reason in ((noise, "no shape"), (flat, "no shape"), (pink, "none of easy-VQA's")):
        with pytest.raises(Unfit, match=reason):
            RuleSegmenter()(frame)
    full = np.where(np.arange(64)[:, None, None] % 9 < 4, 0, flat).astype(np.uint8)
    with pytest.raises(Unfit, match="no room"):
        apply(full, "add", Thing("red", "circle"), seed=0)


def test_rules_refuse_what_is_not_theirs():
    mask = np.ones((4, 4), bool)
    with pytest.raises(Unfit, match="expected one object, a colour and a shape; got 'a dog'"):
        RuleText()(Scene("", [Segment(mask, "a dog")]), 0, "swap", 0)
    edit = stub.Wording("a dog", "")
    with pytest.raises(Unfit, match="cannot swap: 'a dog'"):
        RuleEditor()(np.zeros((4, 4, 3), np.uint8), _edit("swap", mask, edit.edit), 0)


def _edit(kind, mask, description):
    from mmjax.data.differences.interfaces import Edit

    return Edit(kind, Segment(mask, "thing"), description)


# On the fly


def test_records_on_the_fly():
    source = make_source("easy-vqa-differences?num_records=400", "dev")
    known = dict(captioned("dev"))
    kinds = collections.Counter(source.kinds)
    assert len(source) == 400 and all(80 < kinds[kind] < 120 for kind in KINDS)
    said = set()
    for i in range(40):
        example = source[i]
        (original, edited), text = example.media, example.text("assistant")
        assert example.text("user") == INSTRUCTION and example.info["kind"] == source.kinds[i]
        assert [type(part).__name__ for part in example.turns[0].parts] == [
            "Media",
            "Media",
            "Text",
        ]
        number = int(original.key.split("/")[-1])
        facts = known[number]
        before, after = (np.asarray(load_image(media)) for media in (original, edited))
        if source.kinds[i] == "modify":
            now = take_apart(after).thing
            assert text == sentence("modify", Thing(facts.colour, facts.shape), now)
        if source.kinds[i] == "delete":
            assert f"a {facts.colour} {facts.shape} in the first" in text
            assert len(np.unique(after.reshape(-1, 3), axis=0)) == 1
        assert (before != after).any()
        said |= set(words(text)) | set(words(example.text("user")))
    assert said <= VOCABULARY


def test_records_depend_on_their_number_and_the_seed_alone():
    first, again = (make_source("easy-vqa-differences", "dev", num_records=n) for n in (30, 50))
    other = make_source("easy-vqa-differences", "dev", num_records=30, seed=1)

    def content(example):
        data = [media.data() for media in example.media[1:]]
        return example.turns[1], [media.key for media in example.media], data

    assert [content(first[i]) for i in range(30)] == [content(again[i]) for i in range(30)]
    assert [content(first[i]) for i in range(30)] != [content(other[i]) for i in range(30)]


def test_a_key_stands_for_one_picture():
    source = make_source("easy-vqa-differences", "dev", num_records=600)
    shown = collections.defaultdict(list)
    for i in range(600):
        shown[source[i].media[1].key].append(source[i].media[1])
    several = [found for found in shown.values() if len(found) > 1]
    assert len(several) > 10
    assert all(len({media.data() for media in found}) == 1 for found in several)
    with pytest.raises(ValueError, match="num_records must be at least 1"):
        make_source("easy-vqa-differences", "dev", num_records=0)
    (notice,) = source.notices
    everything = {n for n, _ in captioned("dev")}
    assert int(notice.split()[0]) >= sum(f.colour is None for _, f in captioned("dev")) > 0
    assert {int(source[i].media[0].key.split("/")[-1]) for i in range(600)} <= everything


# The builder


@pytest.fixture
def photos(tmp_path):
    """Five noisy pictures with captions; the third one is broken."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for n in range(5):
        noise = rng.integers(0, 256, (10 + n, 12, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{n}.png")
        rows.append({"image": f"{n}.png", "caption": f"photo {n}"})
    (folder / "2.png").write_bytes(b"\x89PNG not really")
    path = folder / "photos.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parts(**changes) -> Parts:
    made = dict(
        attention=stub.CornerAttention(), segmenter=stub.Halves(), text_model=stub.Counting(),
        editor=stub.Inverting(),
    )  # fmt: skip
    return Parts(**made | changes)


def made_of(path, out, settings=None, **changes):
    source = make_source(f"jsonl:{path}", "train")
    settings = settings or Settings(batch_size=2)
    return build(source, parts(**changes), settings, out, made_by={"source": "photos"})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_least_attended_segment_is_edited(photos, tmp_path):
    """The left half has the attention, so the right one is changed; every picture is accounted
    for, and training reads the result."""
    out, texts = tmp_path / "out", stub.Counting(unfit="photo 3")
    attention = stub.CornerAttention()
    report = made_of(photos, out, text_model=texts, attention=attention)
    assert attention.shapes == [(2, 8, 8, 3)] * 3  # padded, and squashed
    assert dict(report.counts) == dict(
        edits=5, made=3, skipped=1, failed=1, pictures=5, repeats=0, without_one_picture=0,
        bad_records=0,
    )  # fmt: skip
    assert report.usage == dict(cost=2.0, requests=4)  # what was skipped has its price, too
    reasons = list(report.reasons)
    assert reasons[0] in ("skipped: a matter of taste", "failed: BadSample") or len(reasons) == 2
    assert [row.keys() & {"skipped", "failed"} for row in lines(out / "outcomes.jsonl")] == [
        set(), set(), {"failed"}, {"skipped"}, set(),
    ]  # fmt: skip
    assert "3 made, 1 skipped, 1 failed" in str(report) and "1 x skipped: a matter" in str(report)
    assert {(label, caption) for caption, label, _ in texts.asked} == {
        ("right", f"photo {n}") for n in (0, 1, 3, 4)
    }
    source = make_source(f"jsonl:{out}/pairs.jsonl", "train")
    assert len(source) == 3
    for number, i in zip((0, 1, 4), range(3), strict=True):
        example = source[i]
        original, edited = (np.asarray(load_image(media)) for media in example.media)
        assert (original == np.asarray(Image.open(photos.with_name(f"{number}.png")))).all()
        assert (edited[:, 6:] == 255 - original[:, 6:]).all()
        assert (edited[:, :6] == original[:, :6]).all()
        assert example.text("user") == "Describe the difference between the images"
        assert example.text("assistant") == "the right side differs."
        assert example.info["edit"] == "another right" and example.info["kind"] in KINDS[:3]
        assert example.info["source"].endswith(f"{number}.png")
    away = made_of(photos, tmp_path / "away", attention=stub.CornerAttention("away"))
    assert away.kinds.keys() <= {"modify", "swap", "delete"}
    assert {row["answer"] for row in lines(tmp_path / "away/pairs.jsonl")} == {
        "the left side differs."
    }


def test_how_ignored_is_the_mean_over_the_mask(photos, tmp_path):
    """The map 2 2 1 1 / 2 2 1 1 / 1 1 1 1 / 1 1 1 1 has the mean 1.25; the right half has 1, but
    for interpolation at its edge."""
    made_of(photos, tmp_path / "out")
    row = lines(tmp_path / "out/outcomes.jsonl")[0]
    map = Image.fromarray(stub.CornerAttention()(np.zeros((1, 8, 8, 3), np.uint8))[0])
    pixels = np.asarray(map.resize((12, 10), Image.Resampling.BILINEAR))
    assert row["attention"] == pytest.approx(pixels[:, 6:].mean() / pixels.mean(), abs=1e-6)
    assert 0.8 < row["attention"] < 0.9
    for limit, made in ((row["attention"] + 1e-6, 1), (row["attention"] - 1e-6, 0)):
        settings = Settings(max_attention=limit, batch_size=2)
        report = build(
            make_source(f"jsonl:{photos}", "train"), parts(), settings, tmp_path / f"limit{made}",
            made_by={}, limit=1,
        )  # fmt: skip
        assert report.counts["made"] == made
    assert list(report.reasons) == [
        "skipped: it has no (further) segment that is ignored as --max_attention says"
    ]


def test_several_edits_of_a_picture_go_up_the_ranks(photos, tmp_path):
    report = made_of(photos, tmp_path / "out", Settings(edits=3, batch_size=2))
    assert report.counts["edits"] == 15 and report.counts["made"] == 8
    answers = [row["answer"] for row in lines(tmp_path / "out/pairs.jsonl")]
    assert answers == ["the right side differs.", "the left side differs."] * 4
    assert report.reasons["skipped: it has fewer segments that may be edited than there are "
                          "--edits"] == 4  # fmt: skip


def test_things_are_added_to_background_only(tmp_path):
    source = make_source("easy-vqa?task=caption&limit=120", "dev")
    rules = dict(segmenter=RuleSegmenter(), text_model=RuleText(), editor=RuleEditor())
    for number, looks in enumerate(("there", "away")):
        settings = Settings(instruction=INSTRUCTION)
        attention = stub.CornerAttention(looks, image_size=32)
        report = build(
            source, parts(**rules, attention=attention), settings, tmp_path / str(number),
            made_by={},
        )  # fmt: skip
        assert report.counts["pictures"] == report.counts["made"] == 20
        assert report.counts["repeats"] == 100
        assert set(report.kinds) == set(KINDS)
        for row in lines(tmp_path / str(number) / "pairs.jsonl"):
            assert set(words(row["answer"])) <= VOCABULARY
    only = Settings(kinds=("add",), seed=3)
    report = build(source, parts(**rules), only, tmp_path / "only", made_by={}, limit=4)
    assert report.kinds == {"add": 4}


def test_a_filter_leaves_out_what_scores_low(photos, tmp_path):
    strict = Settings(min_score=0.6, batch_size=2)
    report = made_of(photos, tmp_path / "out", strict, filter=stub.Share())
    assert report.counts["made"] == 0 and report.counts["skipped"] == 4
    assert report.reasons["skipped: the filter gives less than --min_score"] == 4
    assert not list((tmp_path / "out").glob("pictures/*"))
    lax = Settings(min_score=0.4, batch_size=2)
    assert made_of(photos, tmp_path / "lax", lax, filter=stub.Share()).counts["made"] == 4
    with pytest.raises(ValueError, match="a filter needs min_score"):
        made_of(photos, tmp_path / "half", filter=stub.Share())


class Killed(BaseException):
    pass


@pytest.mark.parametrize("edits", [1, 2])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(photos, tmp_path, monkeypatch, edits):
    """Killed before every single file operation that makes something appear."""
    import mmjax.data.resumable as resumable

    settings, moody = Settings(edits=edits, batch_size=2), stub.CornerAttention(moody=1)
    made_of(photos, tmp_path / "whole", settings, attention=moody)
    whole = content(tmp_path / "whole")
    replace, out = resumable.os.replace, tmp_path / "out"
    moments = 0
    while True:
        left = moments % 4  # three are a pair and its line; fewer would never get on

        def dying(source, target):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            replace(source, target)

        monkeypatch.setattr(resumable.os, "replace", dying)
        try:
            report = made_of(photos, out, settings, attention=moody)
            break
        except Killed:
            moments += 1
            partial = out / "outcomes.jsonl.partial"
            if partial.exists() and moments % 2:  # and the last line was being written
                with partial.open("ab") as file:
                    file.write(b'{"id": "00')
    assert moments > 8 * edits and not report.was_complete
    assert content(out) == whole
    monkeypatch.undo()
    again = made_of(photos, out, settings, attention=moody)
    assert again.was_complete and content(out) == whole
    assert again.counts == report.counts and "was complete already" in str(again)


def test_pictures_of_an_edit_that_was_cut_short_do_not_stay(photos, tmp_path):
    """Started again, it may come to nothing: a text model need not say the same twice."""
    out = tmp_path / "out"

    def dying(frame, edited, edit):
        raise Killed

    with pytest.raises(Killed):
        made_of(photos, out, Settings(min_score=0, batch_size=2), filter=dying)
    (out / "pictures").mkdir()
    left = [out / f"pictures/000003{end}.png" for end in ("", "-0", "-0.png.partial")]
    for path in left:
        path.write_bytes(b"cut short")
    settings, texts = Settings(min_score=0, batch_size=2), stub.Counting(unfit="photo 3")
    report = made_of(photos, out, settings, text_model=texts, filter=stub.Share())
    assert report.counts["made"] == 3 and not any(path.exists() for path in left)
    assert len(list(out.glob("pictures/*"))) == 6


def test_other_settings_are_refused(photos, tmp_path):
    out = tmp_path / "out"
    made_of(photos, out)
    with pytest.raises(ValueError, match=r"from something else(?s:.*)settings.seed: 0 there, 1"):
        made_of(photos, out, Settings(seed=1, batch_size=2))
    with pytest.raises(ValueError, match="attention.looks: 'there' there, 'away' now"):
        made_of(photos, out, attention=stub.CornerAttention("away"))
    photos.write_text(photos.read_text().replace("photo 1", "photo one"))
    with pytest.raises(ValueError, match="something else(?s:.*)pictures: "):
        made_of(photos, out)
    shutil.rmtree(out)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="out is not empty, .*notes.txt.*give another --out"):
        made_of(photos, out)


def test_what_breaks_every_time_stops_and_is_tried_again(photos, tmp_path):
    out = tmp_path / "out"
    settings = Settings(edits=MAX_FAILED, batch_size=2)
    with pytest.raises(ValueError) as caught:
        made_of(photos, out, settings, segmenter=_Failing())
    assert "10 edits in a row failed, up to that of" in str(caught.value)
    assert "RuntimeError: no weights" in str(caught.value)
    assert (out / "outcomes.jsonl.partial").read_bytes() == b""
    report = made_of(photos, out, Settings(batch_size=2), editor=stub.broken_editor())
    assert report.counts["failed"] == 5 and report.counts["made"] == 0  # fewer than that


class _Failing:
    def __call__(self, frame):
        raise RuntimeError("no weights")


def test_parts_that_give_nonsense_are_named(photos, tmp_path):
    wrong = {
        "editor": lambda frame, edit, seed: frame[:3],
        "segmenter": lambda frame: [Segment(np.ones((2, 2), bool), "x")],
    }
    for name, part in wrong.items():
        made_of(photos, tmp_path / name, **{name: part})
        reason = lines(tmp_path / name / "outcomes.jsonl")[0]["failed"]
        assert f"the {name}" in reason and "expected" in reason
    same = made_of(photos, tmp_path / "same", editor=lambda frame, edit, seed: frame)
    assert same.reasons["skipped: the editor changed nothing"] == 4

    class Blind(stub.CornerAttention):
        def __call__(self, frames):
            return super().__call__(frames)[:, 0] * np.nan

    with pytest.raises(ValueError, match=r"gave \[2, 4\] for \[2, 8, 8, 3\] frames, 0% of it"):
        made_of(photos, tmp_path / "blind", attention=Blind())


def test_sources_without_pictures(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"question": "no picture"}\n')
    with pytest.raises(ValueError, match="no picture to edit: 0 repeats, 1 without one picture"):
        made_of(path, tmp_path / "out")
    with pytest.raises(ValueError) as caught:
        Settings(kinds=("blur", "add", "add"), edits=0)
    for text in ("no kind of edit blur", "each kind of edit once", "edits must be at least 1"):
        assert text in str(caught.value)


# By name


def test_parts_by_name():
    assert isinstance(load("segmenter", "easy-vqa"), RuleSegmenter)
    away = load("attention", "data.edits_stub:CornerAttention?looks=away&image_size=16")
    assert (away.identity, away.image_size) == ({"looks": "away"}, 16)
    wrong = {
        ("editor", "photoshop"): "no editor named 'photoshop'; known: easy-vqa, MODULE:ATTRIBUTE",
        ("attention", "blip"): "no attention named 'blip'; known: blip-2, MODULE:ATTRIBUTE",
        ("editor", "nowhere.sd:Edit"): "No module named 'nowhere'.*PYTHONPATH",
        ("editor", "data.edits_stub:Missing"): "has no attribute 'Missing'",
        ("editor", "data.edits_stub:NUMBER"): "is no class or function, but 3",
        ("editor", "data.edits_stub:NotCallable"): "cannot be called, as a editor can",
        ("editor", "data.edits_stub:Inverting?hard=1"): "has no option hard; there is none",
        ("text_model", "data.edits_stub:Counting?fit=1"): "no option fit; there are unfit",
        ("text_model", "chat-api?model=x"): "needs base_url: chat-api.base_url=",
    }
    for (part, name), message in wrong.items():
        with pytest.raises(ValueError, match=message):
            load(part, name)


# The text model behind an address


@pytest.fixture
def server(monkeypatch):
    """Answers with what is in ``replies``: (status, headers, text of the model)."""
    replies, seen = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            status, headers, text = replies.pop(0)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            message = {"choices": [{"message": {"content": text}}]}
            tokens = {"usage": {"prompt_tokens": 100, "completion_tokens": 10}}
            self.wfile.write(json.dumps(message | tokens).encode())

        def log_message(self, *_):
            pass

    waited = []
    monkeypatch.setattr(chat_client.time, "sleep", waited.append)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TEST_KEY", "secret")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/v1", replies, seen, waited
        running.shutdown()


def scene() -> Scene:
    dog, sky = np.zeros((10, 20), bool), np.zeros((10, 20), bool)
    dog[5:, :10], sky[:5] = True, True
    return Scene("a dog under {the} sky", [Segment(dog, "dog"), Segment(sky, "sky", True)])


GOOD = '```json\n{"edit": "a cat", "sentence": "The dog became a cat."}\n```'


def test_an_answer_costs_what_it_took(server):
    url, replies, seen, waited = server
    replies += [(429, {"Retry-After": "7"}, ""), (200, {}, "I would rather not."), (200, {}, GOOD)]
    options = "key_env=TEST_KEY&prompt_price=1&completion_price=2.5"
    model = load("text_model", f"chat-api?base_url={url}/&model=parrot&{options}")
    wording = model(scene(), 0, "swap", 5)
    assert (wording.edit, wording.sentence) == ("a cat", "The dog became a cat.")
    assert wording.usage == dict(
        requests=3, prompt_tokens=200, completion_tokens=20, cost=pytest.approx(250e-6)
    )
    assert waited == [7.0, 0.0]
    path, key, body = seen[-1]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "parrot")
    assert [request[2]["seed"] for request in seen] == [5, 6, 7]
    (message,) = body["messages"]
    for text in ("a dog under {the} sky", "- dog (0, 50, 50, 100)", "- sky (0, 0, 100, 50; backgr",
                 "place of the edit: dog (0", "Replace the object"):  # fmt: skip
        assert text in message["content"]


def test_no_answer(server):
    url, replies, _, waited = server
    model = chat_api.ChatAPI(url, "parrot", retries=2)
    replies += [(200, {}, '{"unfit": "it is the whole picture"}')]
    with pytest.raises(Unfit, match="the text model says: it is the whole picture") as unfit:
        model(scene(), 0, "swap", 5)
    assert unfit.value.usage["prompt_tokens"] == 100
    replies += [(401, {}, "")]
    with pytest.raises(Unanswered, match="401 Unauthorized"):
        model(scene(), 0, "swap", 5)
    assert not waited
    replies += [
        (503, {}, ""),
        (200, {}, '{"edit": "x"}'),
        (200, {}, '{"edit": "", "sentence": ""}'),
    ]
    with pytest.raises(Unanswered, match="an empty field.*3 requests") as unanswered:
        model(scene(), 0, "swap", 5)
    assert unanswered.value.usage == dict(requests=3, prompt_tokens=200, completion_tokens=20)
    nobody = chat_api.ChatAPI("http://127.0.0.1:9", "parrot", retries=1)
    with pytest.raises(Unanswered, match="Connection refused.*2 requests"):
        nobody(scene(), 0, "swap", 5)
    with pytest.raises(ValueError, match="base_url must start with http"):
        chat_api.ChatAPI("localhost:8000", "parrot")
