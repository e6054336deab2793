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
from tdsm.figures.charts import confusion, curves
from tdsm.report.page import ReportInputs, render, write_report

HOSTILE = "\"'><script>alert(1)</script><img src=https://example.org/x onerror=alert(2)> & </style> \udcff"
VOID = {"meta", "img", "rect"}


class Page(HTMLParser):
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


@pytest.fixture(scope="module")
def inputs():
    loss = curves([{"step": 1, "loss": 0.5, "seconds": 1.0}])
    return ReportInputs(
        title="Digits",
        verdict="The TDSM stands below.",
        summary=("The field reconstructs.", "The map classifies."),
        notes=("One seed.",),
        rows=[row("map", "tdsm", 0.5), row("tokens", "baseline", 0.6), row("pixels", "baseline", 0.4, 0.4)],
        tables=(
            Table("Does it pay?", ["feature", "accuracy"], [["solo", "27.7"]], ["feature"], ["No."], ["Of 9."]),
            Table("Measures", ["rank"], [["3.2"]]),
        ),
        figures={
            "curves": (loss, "Training loss. Lower is better."),
            "confusion": (confusion(np.eye(2), ["a", "b"]), "Counts."),
        },
        field={"parameters": 1234567, "psnr_test": 28.43219, "frozen": True, "image_size": [8, 8], "seed": None},
        config={"field": {"tokens": 16}},
        environment={"python": "3.11"},
        command="tdsm run --seed 0",
    )


@pytest.fixture(scope="module")
def html(inputs):
    return render(inputs)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_nothing_is_loaded_from_outside(html, page):
    assert page.open == []
    assert {name for name, _ in page.elements}.isdisjoint({"link", "base", "iframe", "object", "embed", "form"})
    for name, attributes in page.elements:
        for key in ("src", "href", "srcset", "poster", "action", "data"):
            if key in attributes:
                assert attributes[key].startswith({"a": "#", "img": "data:image/png;base64,"}[name])
    assert not re.search(r"url\(|@import|https?:|file:", html)


def test_links_lead_to_sections(page):
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    links = [attributes["href"].removeprefix("#") for attributes in page.all("a")]
    assert len(set(names)) == len(names)
    assert set(links) == set(names)
    assert "figure-curves" in links


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


def test_the_page_says_what_it_was_told(inputs, page):
    text = page.text().replace("\u00a0", " ")
    for sentence in (*inputs.summary, *inputs.notes, inputs.verdict, inputs.command, '"tokens": 16', "3.11"):
        assert sentence in text
    assert page.text("h1") == "Digits"
    assert page.text("dd") == "1\u2009234\u200956728.43yes8, 8–"
    assert "Figure 1. Curves." in text
    assert text.index("The TDSM stands below.") < text.index("The field reconstructs.") < text.index("Figure 1.")


def test_what_else_was_found_stands_in_tables_of_its_own(html, page):
    assert page.text("h3") == "Does it pay?Measures"
    text = page.text("p", "td", "li")
    assert text.index("No.") < text.index("solo27.7") < text.index("Of 9.") < text.index("3.2")
    assert '<td class="word">solo</td><td class="number">27.7</td>' in html
    assert '<th scope="col" class="word">feature</th><th scope="col" class="number">accuracy</th>' in html


def test_the_table_says_how_its_intervals_were_made(inputs, page):
    assert "Wilson" not in page.text()
    rows = [row | {"interval": "Wilson over images and seeds"} for row in inputs.rows]
    assert "95\u00a0% intervals: Wilson over images and seeds." in Page(render(replace(inputs, rows=rows))).text("li")


def test_names_become_words(inputs):
    curve = inputs.figures["curves"]
    named = Page(render(replace(inputs, figures={"t-sne": curve, "tdsm-0": curve, "token_statistics": curve})))
    assert named.text("b") == "Figure 1. T-SNE.Figure 2. TDSM 0.Figure 3. Token statistics."


def test_every_picture_has_words_and_its_own_size(inputs, page):
    pictures = page.all("img")
    assert [picture["alt"] for picture in pictures] == ["Curves: Training loss.", "Confusion: Counts."]
    for picture, (figure, _) in zip(pictures, inputs.figures.values(), strict=True):
        width, height = figure.get_size_inches()
        assert (int(picture["width"]), int(picture["height"])) == (round(100 * width), round(100 * height))


def test_the_table_is_sorted_and_marks_the_best_of_each_role(html):
    (body,) = re.findall('<table class="sortable">.*?<tbody>(.*?)</tbody>', html, flags=re.DOTALL)
    lines = body.strip().splitlines()
    assert [re.search('class="name">([a-z]+)', line)[1] for line in lines] == ["tokens", "map", "pixels"]
    assert [re.findall(r"best (?:TDSM|baseline)", line) for line in lines] == [["best baseline"], ["best TDSM"], []]
    assert 'class="interval" x="58.00" y="0" width="4.00"' in lines[0]
    assert 'data-value="0.6"' in lines[0]


def test_the_table_of_several_seeds_has_a_column_more_that_sorts(inputs, html):
    rows = [{**inputs.rows[0], "accuracies": [0.48, 0.52], "deviation": 0.0283}, *inputs.rows[1:]]
    pages = [html, render(replace(inputs, rows=rows))]
    columns = [re.findall("<th scope=[^>]*>([^<]*)</th>", page) for page in pages]
    assert columns[1] == [*columns[0][:3], "deviation", *columns[0][3:]]
    lines = re.search("<tbody>(.*?)</tbody>", pages[1], flags=re.DOTALL)[1].strip().splitlines()
    numbers = [re.findall('<td class="number"[^>]*>([^<]*)</td>', line)[:2] for line in lines]
    assert numbers == [["60.0", "–"], ["50.0", "2.8"], ["40.0", "–"]]
    assert [line.count('data-value="-1') for line in lines] == [1, 0, 1]
    for page in pages:
        head, first = re.search("<thead>(.*)</thead>", page)[1], re.search("<tbody>\n(.*)", page)[1]
        assert head.split("</th>")[:-1].index('<th aria-hidden="true">') == (
            [cell.startswith('<td class="plot') for cell in first.split("</td>")].index(True)
        )


def test_hostile_text_stays_text(inputs, page):
    hostile = ReportInputs(
        title=HOSTILE,
        verdict=HOSTILE,
        summary=(HOSTILE,),
        notes=(HOSTILE,),
        rows=[{**row(HOSTILE, "tdsm", 0.5), "features": HOSTILE, "head": HOSTILE}, *inputs.rows[1:]],
        tables=tuple(
            replace(
                table,
                title=HOSTILE,
                headings=[*table.headings[:-1], HOSTILE],
                lines=[[HOSTILE] * len(table.headings)],
                findings=[HOSTILE] * len(table.findings),
                notes=[HOSTILE] * len(table.notes),
            )
            for table in inputs.tables
        ),
        figures={name: (figure, HOSTILE) for name, (figure, _) in inputs.figures.items()},
        field={HOSTILE: HOSTILE, **dict(list(inputs.field.items())[1:])},
        config={HOSTILE: [HOSTILE]},
        environment={HOSTILE: HOSTILE},
        command=HOSTILE,
    )
    html = render(hostile)
    html.encode()
    attacked = Page(html)
    assert attacked.open == []
    assert [name for name, _ in attacked.elements if name not in ("li", "p")] == [
        name for name, _ in page.elements if name not in ("li", "p")
    ]
    assert [set(attributes) for _, attributes in attacked.elements if "alt" in attributes] == [
        {"src", "width", "height", "alt"}
    ] * 2
    expected = HOSTILE.replace("\udcff", "?")
    for tags in (("h1",), ("title",), ("li",), ("td",), ("th",), ("h3",), ("figcaption",), ("dt",), ("dd",), ("pre",)):
        assert expected in attacked.text(*tags).replace("\u00a0", " ")


def test_a_page_of_almost_nothing_still_reads(inputs):
    bare = Page(render(replace(inputs, summary=(), notes=(), rows=[], tables=(), figures={}, field={})))
    assert "The TDSM stands below." in bare.text("p")
    assert [link["href"] for link in bare.all("a")] == ["#findings", "#reproduce"]
    assert bare.all("table") == bare.all("img") == bare.all("dl") == []


def test_written_files_are_what_the_page_shows(inputs, html, tmp_path):
    path = write_report(tmp_path / "run", inputs)
    assert path == tmp_path / "run" / "report.html"
    assert path.read_text(encoding="utf-8") == html
    embedded = [base64.b64decode(picture["src"].partition(",")[2]) for picture in Page(html).all("img")]
    written = [(tmp_path / "run" / "figures" / f"{name}.png").read_bytes() for name in inputs.figures]
    assert embedded == written
    files = sorted(str(file.relative_to(path.parent)) for file in path.parent.rglob("*") if file.is_file())
    assert files == ["figures/confusion.png", "figures/curves.png", "report.html"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", 'a"b', "a\n"], ids=repr)
def test_figure_names_that_are_no_file_names_are_refused(inputs, tmp_path, name):
    bad = replace(inputs, figures={name: inputs.figures["curves"]})
    with pytest.raises(UsageError, match="cannot be a file name"):
        write_report(tmp_path, bad)
    assert list(tmp_path.iterdir()) == []
