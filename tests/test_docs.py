"""What README.md and the pages of docs/ show works as shown, and the site that is built of them holds it."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from tdsm.cli import main
from tdsm.cli.verbs import ANSWERED, VERBS
from tdsm.explore.document import SCRIPTS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = ROOT / "docs" / "notebooks"  # whose pages are written from what test_notebooks runs
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def lines(page):
    """Yield the words of every command of a page: in blocks, and in the text where it is whole."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (shlex.split(part, comments=True) for part in line.split("&&"))
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for line in re.findall(r"`((?:tdsm|torchrun) [^`…]+)`|^    ((?:tdsm|python) .+)$", text, re.MULTILINE):
        yield shlex.split("".join(line))


def commands(page):
    """Yield what follows `tdsm` in every command of a page, torchrun's included."""
    for words in lines(page):
        if words[:1] == ["tdsm"]:
            yield words[1:]
        elif "tdsm" in words and words[0] == "torchrun":
            yield [word for word in words[words.index("tdsm") + 1 :] if word != "--"]


OTHERS = [(n, words) for n, p in zip(NAMES, PAGES, strict=True) for words in lines(p) if words and words[0] != "tdsm"]
TARGETS = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
ELSEWHERE = {"torchrun", "export", "pip", "cd", "sbatch"}  # of other programs


@pytest.mark.parametrize(("page", "words"), OTHERS)
def test_every_other_command_names_what_is_there(page, words):
    if words[0] == "make":
        assert set(words[1:]) <= set(TARGETS)
    elif words[0] == "python":
        script = (ROOT / words[1]).read_text()
        assert all(f'"{word}"' in script for word in words[2:] if word.startswith("--")), words
    else:
        assert words[0] in ELSEWHERE


@pytest.mark.parametrize(
    ("page", "arguments"), [(n, c) for n, p in zip(NAMES, PAGES, strict=True) for c in commands(p)]
)
def test_every_command_is_one(page, arguments):
    if arguments[0] in VERBS and set(arguments[1:]) <= set(ANSWERED):
        return  # a verb or a question that the text names
    if {"--help", "--version"}.isdisjoint(arguments):
        main._parse(arguments)


WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page.parent != NOTEBOOKS]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path):
    code = "\n".join(blocks(page, "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stated = re.findall(r"^prints `([^`]+)`", page.read_text(), re.MULTILINE)
    assert all(words in done.stdout for words in stated), done.stdout


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\((?!http|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_site_is_built_strictly_and_holds_the_docstrings(tmp_path):
    if shutil.which("zensical", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("zensical is not installed: the site is not built")
    settings = (ROOT / "mkdocs.yml").read_text().replace("build/site", str(tmp_path / "site"))
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mkdocs.yml").write_text(settings)
    zensical = Path(sys.executable).parent / "zensical"
    done = subprocess.run([zensical, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "griffe" not in done.stdout + done.stderr  # a docstring that cannot be read
    reference = re.sub(r"<[^>]+>", "", (tmp_path / "site" / "reference" / "index.html").read_text())
    assert "completeness" in reference
    assert "Reduce component images over colour into the token-decoded spatial map" in reference
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text()), page
        if page.name != "404.html":  # shown at any address, so its links are those of a site at the root
            assert not list(lost_links(page)), page
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?https?://", sheet.read_text()), sheet


def lost_links(page):
    """Yield the links of a built page that lead to no file, or to no place in it."""
    for link in re.findall(r'<a [^>]*href="(?!https?:|mailto:|javascript:)([^"]*)"', page.read_text()):
        path, _, place = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file() or (place and f'id="{place}"' not in target.read_text()):
            yield link


def test_a_lost_link_is_noticed(tmp_path):
    (tmp_path / "there.html").write_text('<h1 id="here">')
    page = tmp_path / "page.html"
    page.write_text('<a href="there.html#here"> <a href="there.html#gone"> <a href="gone/"> <a href="https://a.b">')
    assert list(lost_links(page)) == ["there.html#gone", "gone/"]


def test_the_explorer_on_the_site_is_the_page_as_it_is_now():
    kept, page = (ROOT / "docs" / "explorer" / "digits.html").read_text(), files("tdsm.explore") / "page"
    for name in ("page.css", *SCRIPTS):
        assert (page / name).read_text().strip("\n") in kept, name


def test_the_picture_of_the_findings_shows_rows_of_results():
    script = runpy.run_path(str(ROOT / "docs" / "findings.py"))
    figure = script["drawn"]()
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(script["PANELS"])
    for axes, folder in zip(figure.axes, script["PANELS"].values(), strict=True):
        rows = [row for path in (ROOT / "results" / folder).glob("table*.json") for row in json.loads(path.read_text())]
        dots = [line.get_xdata().item() for line in axes.lines if len(line.get_xdata()) == 1]
        assert len(dots) == len(script["LINES"])
        assert set(dots) <= {100 * row["accuracy"] for row in rows}
