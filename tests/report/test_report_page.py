"""The page stands alone, says what it was told, and runs nothing it was not meant to."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tdsm.base.errors import UsageError
from tdsm.base.text import Table
from tdsm.figures.charts import confusion, curves, embedding
from tdsm.figures.tiles import Gallery, in_colour, signed, sprite
from tdsm.pipeline.table import COLUMNS
from tdsm.report.blocks import (
    Beside,
    Chart,
    Code,
    Data,
    Facts,
    Flow,
    Fold,
    Page,
    Said,
    Scores,
    Section,
    Step,
    Thumbnails,
)
from tdsm.report.page import render, write_report

HOSTILE = "\"'><script>alert(1)</script><img src=https://example.org/x onerror=alert(2)> & </style> \udcff"
VOID = {"meta", "img"}


class Read(HTMLParser):
    """Collects a page's elements, its text by enclosing element, and what was never closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *tags):
        return "".join(data for tag, data in self.texts if tag in tags or not tags)


def row(name, role, accuracy, validation=0.5):
    return {
        "name": name,
        "role": role,
        "features": "maps",
        "head": "avg",
        "accuracy": accuracy,
        "low": accuracy - 0.02,
        "high": accuracy + 0.02,
        "n_test": 2500,
        "parameters": 1000,
        "seconds": 12.0,
        "validation_accuracy": validation,
    }


TILE = in_colour(np.full((4, 6, 3), 0.5))


def chart(words="Training loss. Lower is better."):
    return Chart("curves", curves([{"step": 1, "loss": 0.5, "seconds": 1.0}]), words)


def scatter(classes=("cat", "dog")):
    figure = embedding(np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 1.0]]), [0, 1, 0], classes, "PCA")
    thumbnails = Thumbnails(sprite([TILE] * 3, 2), 32, 2, [classes[0], classes[0], classes[1]])
    return Chart("pca", figure, "Where images lie.", thumbnails)


def made(text="x", rows=None):
    """A page with a block of every kind that shows a text wherever one may stand."""
    rows = rows or [row("map", "tdsm", 0.5), row("tokens", "baseline", 0.6), row("pixels", "baseline", 0.4, 0.4)]
    table = Table(f"Table {text}", ["feature", text], [[text, "1.0"], ["solo", "−27.7"]], ["feature"], [text], [text])
    gallery = Gallery(
        f"Gallery {text}", [text, "map"], [text], [[TILE, TILE]], [(text, TILE)], [signed(text, np.array([1.0]))]
    )
    flow = Flow([Step(text, TILE, text), Step("a class", None, text, text)], f"Flow {text}")
    figure = Chart("confusion", confusion(np.eye(2), [text, "b"]), text)
    top = [flow, Said([f"Verdict {text}"], "verdict"), Said([text]), Said([text], "caveats")]
    sections = [
        Section("tokens", f"Tokens {text}", [gallery, Beside([chart(text), scatter((text, "dog"))])]),
        Section("classes", "Classes", [Scores(text, rows, COLUMNS, ["map", "tokens"]), Said([text], "note"), table]),
        Section("empty", "Nothing here", []),
        Section("made", "Made", [Facts({text: 1234567, "frozen": True, "size": [8, 8], "seed": None}), figure]),
        Section("how", "How", [Code(text), Fold(text, [Data({text: text})])]),
    ]
    return Page(f"Title {text}", [text], top, sections)


@pytest.fixture(scope="module")
def html():
    return render(made())


@pytest.fixture(scope="module")
def page(html):
    return Read(html)


def test_nothing_is_loaded_from_outside(html, page):
    assert page.open == []
    assert {name for name, _ in page.elements}.isdisjoint({"link", "base", "iframe", "object", "embed", "form"})
    for name, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "srcset", "poster", "action", "data"):
            if key in attributes:
                assert attributes[key].startswith(("#", "data:image/png;base64,", "data:image/webp;base64,")), name
    addresses = set(re.findall(r"https?:[^\"]*", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"url\([^#]|@import|file:", html)


def test_links_lead_to_the_sections_that_hold_something(page):
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    links = [attributes["href"].removeprefix("#") for attributes in page.all("a")]
    assert len(set(names)) == len(names)
    assert links == ["tokens", "classes", "made", "how"]
    assert set(links) <= set(names)


def test_the_policy_allows_exactly_the_style_and_script_of_the_page(html, page):
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for name in ("style", "script"):
        (source,) = re.findall(f"<{name}>(.*?)</{name}>", html, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    inline = [key for _, attributes in page.elements for key in attributes if key == "style" or key.startswith("on")]
    assert inline == []


def test_the_top_comes_first_and_says_what_it_was_told(page):
    text = page.text()
    places = [text.rindex(words) for words in ("Flow x", "Verdict x", "Caveats", "Tokens x", "Classes")]
    assert places == sorted(places)
    assert page.text("dd") == "1\u2009234\u2009567yes8, 8–"


def test_every_picture_has_words_and_its_own_size(page):
    pictures = [picture for picture in page.all("img") if picture.get("alt") not in ("to", "")]
    assert {picture["alt"] for picture in pictures} == {"x", "x: x", "x: map"}
    assert {(picture["width"], picture["height"]) for picture in pictures} == {("6", "4")}
    charts = [element["aria-label"] for element in page.all("div") if element.get("role") == "img"]
    assert charts == ["Curves: x.", "PCA: Where images lie.", "Confusion: x."]


def test_charts_take_the_colours_of_the_page(html):
    drawn = re.findall("<svg xmlns.*?</svg>", html, flags=re.DOTALL)
    assert len(drawn) == 3
    for picture in drawn:
        assert 'fill="var(--ink)"' in picture
        assert not re.search('"#(1f2328|ffffff|6b7280)"', picture)
        assert re.match(r'<svg [^>]*width="\d+" height="\d+" viewBox', picture)


def test_points_are_drawn_in_the_order_of_their_thumbnails(html, page):
    (figure,) = (element for element in page.all("figure") if "data-words" in element)
    assert figure["data-words"].split('"')[1::2] == ["x", "x", "dog"]
    groups = re.findall(r'<g id="pca-points-(\d+)">(.*?)</g></g>', html, flags=re.DOTALL)
    assert [(number, group.count("<use")) for number, group in groups] == [("0", 2), ("1", 1)]


def test_rows_stand_in_the_order_given_and_the_best_are_marked(html):
    (body,) = re.findall('<table class="sortable scores">.*?<tbody>(.*?)</tbody>', html, flags=re.DOTALL)
    lines = body.strip().splitlines()
    assert [re.search('class="name">([a-z]+)', line)[1] for line in lines] == ["map", "tokens", "pixels"]
    assert [re.findall(r"best (?:TDSM|baseline)", line) for line in lines] == [["best TDSM"], ["best baseline"], []]
    assert 'class="interval" x="58.00" y="0" width="4.00"' in lines[1]
    assert 'data-value="0.6"' in lines[1]


def test_hostile_text_stays_text(page):
    html = render(made(HOSTILE))
    html.encode()
    attacked = Read(html)
    assert attacked.open == []
    kinds = ("h1", "h2", "h3", "p", "li", "td", "th", "figcaption", "dt", "pre", "summary", "span", "title")
    names = [name for name, _ in attacked.elements if name in kinds or name in ("script", "img")]
    assert names == [name for name, _ in page.elements if name in kinds or name in ("script", "img")]
    expected = HOSTILE.replace("\udcff", "?")
    for kind in ("h1", "h2", "h3", "p", "td", "figcaption", "dt", "pre", "summary", "span", "title"):
        assert expected in attacked.text(kind).replace("\u00a0", " "), kind


def test_names_of_other_scripts_are_letters_in_the_charts():
    assert "大型犬" in render(Page("Dogs", [], [scatter(("大型犬", "dog"))], []))


def test_a_page_of_almost_nothing_still_reads():
    bare = Read(render(Page("Bare", [], [Said(["It ran."])], [])))
    assert "It ran." in bare.text("p")
    assert bare.all("table") == bare.all("img") == bare.all("a") == []


def test_written_files_are_the_charts_of_the_page(html, tmp_path):
    path = write_report(tmp_path / "run", made())
    assert path == tmp_path / "run" / "report.html"
    assert path.read_text(encoding="utf-8") == html
    files = sorted(str(file.relative_to(path.parent)) for file in path.parent.rglob("*") if file.is_file())
    assert files == ["figures/confusion.png", "figures/curves.png", "figures/pca.png", "report.html"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", 'a"b', "a\n"], ids=repr)
def test_figure_names_that_are_no_file_names_are_refused(tmp_path, name):
    bad = Page("Bad", [], [Fold("In here", [replace(chart(), name=name)])], [])
    with pytest.raises(UsageError, match="cannot be a file name"):
        write_report(tmp_path, bad)
    assert list(tmp_path.iterdir()) == []
