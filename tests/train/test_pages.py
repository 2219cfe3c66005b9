"""Pages that need no other file."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from mmjax.train.pages import write_samples


class Page(HTMLParser):
    """Checks that tags close in order; collects text and pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.images = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        for name in ("src", "href"):
            assert attrs.get(name, "data:").startswith("data:"), "the page must need no other file"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_samples(tmp_path):
    small = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    Image.new("RGBA", (900, 300), "red").save(tmp_path / "large.png")
    row = {
        "images": [small],
        "question": "<b>What</b> & {x}?",
        "answer": "</dd><script>",
        "truth": "a",
        "kind": "k",
    }
    rows = [
        row | {"correct": False},
        row | {"images": [tmp_path / "large.png", None], "answer": "a", "correct": True},
    ]
    write_samples(tmp_path / "samples.html", rows, title="lmeye <tiny>")
    page = Page((tmp_path / "samples.html").read_text(encoding="utf-8"))
    for text in (
        "lmeye <tiny>",
        "1 of 2 answers are correct.",
        "<b>What</b> & {x}?",
        "</dd><script>",
        "✓ correct",
        "✗ wrong",
    ):
        assert text in page.text
    assert page.text.count("no picture: picture 2") == 1, "all pictures of a row are shown"
    assert page.text.index("✗ wrong") < page.text.index("✓ correct")
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(image["src"].partition("base64,")[2])))
        for image in page.images
    ]
    np.testing.assert_array_equal(np.asarray(pictures[0]), np.asarray(small))
    assert pictures[1].size == (448, 149)
