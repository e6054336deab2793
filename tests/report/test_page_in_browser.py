"""The page as people meet it, in Chromium: it sorts, shows what is pointed at, and fits narrow windows and the dark."""

import shutil
from importlib.util import find_spec

import pytest

from tdsm.report.page import render
from tests.report.test_report_page import made

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None, reason="no chromium, or playwright is not installed"
)
LONG = "a_class_whose_name_has_no_space_and_goes_on_for_longer_than_a_telephone_is_wide_大型犬大型犬大型犬"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(made(LONG)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """Open the page, and see that nothing was asked for beyond it and nothing went wrong."""
    windows, asked, wrong = [], [], []

    def open_page(**options):
        window = browser.new_page(**options)
        window.on("request", lambda request: asked.append(request.url))
        window.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        window.on("pageerror", lambda error: wrong.append(str(error)))
        window.goto(address)
        windows.append(window)
        return window

    yield open_page
    assert [url for url in asked if not url.startswith("data:")] == [address] * len(windows)
    assert wrong == []
    for window in windows:
        window.close()


def test_a_heading_sorts_its_table_one_way_and_then_the_other(opened):
    window = opened()
    table = window.locator("table.scores")
    names = "rows => rows.map(row => row.cells[0].firstChild.textContent.trim())"
    button = table.get_by_role("button", name="test accuracy (%)")
    button.click()
    assert table.locator("tbody tr").evaluate_all(names) == ["tokens", "map", "pixels"]
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    button.click()
    assert table.locator("tbody tr").evaluate_all(names) == ["pixels", "map", "tokens"]
    table.get_by_role("button", name="name").press("Enter")
    assert table.locator("tbody tr").evaluate_all(names) == ["map", "pixels", "tokens"]


def test_a_plain_table_sorts_signed_numbers_as_numbers(opened):
    table = opened().locator("table.sortable:not(.scores)")
    table.get_by_role("button").nth(1).click()
    assert table.locator("tbody td.number").all_inner_texts() == ["1.0", "−27.7"]
    table.get_by_role("button").nth(1).click()
    assert table.locator("tbody td.number").all_inner_texts() == ["−27.7", "1.0"]


def test_a_point_shows_its_image_and_its_class(opened):
    window = opened()
    tip, points = window.locator(".tip"), window.locator("#figure-pca g[id*='-points-'] use")
    assert tip.is_hidden()
    points.nth(2).hover(force=True)
    assert tip.inner_text() == "dog"
    grey = "canvas => canvas.getContext('2d').getImageData(9, 9, 1, 1).data[0]"
    assert 118 < tip.locator("canvas").evaluate(grey) < 138
    window.locator("h1").hover()
    assert tip.is_hidden()


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(opened, width):
    window = opened(viewport={"width": width, "height": 800})
    window.locator("summary").evaluate_all("folds => folds.forEach(fold => fold.click())")
    assert window.evaluate("document.scrollingElement.scrollWidth") <= width
    reach = "nodes => Math.max(...nodes.map(node => node.getBoundingClientRect().right))"
    assert window.locator("figure img:visible, figure svg:visible, figcaption").evaluate_all(reach) <= width


def test_charts_follow_the_dark(opened):
    read = """() => getComputedStyle(document.querySelector('.chart svg text[fill="var(--ink)"]')).fill"""
    inks = [opened(color_scheme=scheme).evaluate(read) for scheme in ("light", "dark")]
    assert inks == ["rgb(29, 33, 38)", "rgb(227, 229, 232)"]
