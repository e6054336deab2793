"""The page in a browser: what is shown is what the library computes, and nothing leaves the page."""

import json
import re
import shutil
import time
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch

import tdsm
from tdsm.base.statistics import psnr
from tdsm.explore.export import exported_page
from tests.explore.test_server import Site
from tests.explore.test_studio import picture, random_studio

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or pytest.skip("no chromium on this machine", allow_module_level=True)
HOSTILE = '<img src="http://evil.example/x" onerror="document.title=1">'
TILES = "[...document.querySelectorAll('.tile')].map((tile) => Number(tile.dataset.token))"

DROP = """(content) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([content], "x.png"));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(studio):
    site = Site(replace(studio, classes=(HOSTILE, *studio.classes[1:]), title=f"digits {HOSTILE}"))
    yield site
    site.close()


class Visit:
    """A page that is open, what it asked for, and what went wrong in it."""

    def __init__(self, browser, address, **options):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, **options)
        self.asked, self.errors = [], []
        context.route("**/*", self._route)
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.goto(address)
        self.page.evaluate("explorer.ready")
        self.settle()

    def _route(self, route):
        self.asked.append(route.request.url)
        route.continue_()

    def settle(self):
        """Wait until nothing is asked for any more."""
        self.until("explorer.isQuiet")

    def until(self, expression):
        """Wait until something holds; asked from outside, since the page's policy forbids to evaluate text in it."""
        end = time.monotonic() + 60
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"never {expression}"
            self.page.wait_for_timeout(20)

    def array(self, name):
        """Return an array of the page's data."""
        shape, values = self.page.evaluate(
            f"(() => {{ const a = explorer.{name}; return [a.shape, [...a.values]]; }})()"
        )
        return torch.tensor(values).reshape(shape)

    def text(self, name):
        return self.page.locator(f"#{name}").inner_text()

    def click(self, selector):
        self.page.locator(selector).click()
        self.settle()

    def select(self, name, value):
        self.page.locator(f"#{name}").select_option(value)
        self.settle()

    def tile(self, token):
        return self.page.locator(f".tile[data-token='{token}']")

    def on(self):
        return [k for k in range(4) if self.tile(k).get_attribute("aria-pressed") == "true"]

    def close(self):
        self.page.context.close()
        assert self.errors == []


@pytest.fixture
def visit(browser, site):
    visit = Visit(browser, f"http://127.0.0.1:{site.port}/?token={site.token}")
    yield visit
    visit.close()
    assert {re.match(r"(\w+://[^/]*|blob:|data:)", url)[0] for url in visit.asked} <= {
        f"http://127.0.0.1:{site.port}",
        "blob:",
    }


def tokens_of(studio, row):
    with torch.no_grad():
        return studio.field.encode(studio.image(0, row))


def parts_of(studio, row, method, side):
    with torch.no_grad():
        return tdsm.decompose(studio.field, tokens_of(studio, row), (side, side), method=method)


def near(one, other, atol=2e-6):
    torch.testing.assert_close(one, other, atol=atol, rtol=1e-5)


def pixels(visit, name, channel=0):
    """Read a channel of a canvas back: (height, width), 0 to 255."""
    read = """([name, channel]) => {
        const canvas = document.getElementById(name), context = canvas.getContext("2d");
        const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.height, canvas.width, [...data].filter((_, at) => at % 4 === channel)];
    }"""
    height, width, values = visit.page.evaluate(read, [name, channel])
    return torch.tensor(values).reshape(height, width)


# ---------------------------------------------------------------- what is shown is what the library computes


def test_an_image_is_shown_as_the_library_takes_it_apart(visit, studio):
    visit.page.locator(".thumb").nth(3).click()
    visit.settle()
    parts = parts_of(studio, 3, "additive", 32)
    near(visit.array("loaded.a.view.components"), parts.components[0])
    near(visit.array("shown.a"), parts.reconstruction[0])
    drawn = ((parts.reconstruction[0, ..., 0] + 1) * 127.5).clamp(0, 255)
    assert (pixels(visit, "shown") - drawn).abs().max() <= 0.51
    energy = parts.components[0].square().sum((1, 2, 3))
    assert visit.page.evaluate(TILES) == energy.argsort(descending=True).tolist()
    shares = [visit.tile(k).locator("span span").last.inner_text() for k in range(4)]
    assert [float(share.split()[0]) for share in shares] == pytest.approx(
        (100 * energy / energy.sum()).tolist(), abs=0.6
    )


def test_every_decomposition_is_there(visit, studio):
    for number, method in enumerate(studio.methods):
        visit.click(f"[data-method='{number}']")
        near(visit.array("loaded.a.view.components"), parts_of(studio, 0, method, 32).components[0])
        assert visit.page.locator("#legend").inner_text().strip()
    assert [b.inner_text() for b in visit.page.locator("#methods button").all()] == [
        name.replace("_", " ") for name in studio.methods
    ]


def test_switching_a_token_off_leaves_it_out_of_the_sum_in_the_page(visit, studio):
    before = len(visit.asked)
    visit.tile(2).click()
    assert visit.on() == [0, 1, 3]
    parts = parts_of(studio, 0, "additive", 32)
    near(visit.array("shown.a"), parts.base[0] + parts.components[0, [0, 1, 3]].sum(0))
    falls = studio.falls(0, 0, 0)
    near(torch.tensor(visit.page.evaluate("[...shown.scores]")), falls.blank + falls.by_token[[0, 1, 3]].sum(0), 1e-4)
    assert visit.text("count") == "3 of 4 tokens on"
    assert visit.text("how") == "sum of components, in this page"
    assert visit.asked[before:] == []


def test_taking_a_token_away_is_exact_and_says_so(visit, studio):
    visit.click("input[value=exact]")
    visit.tile(1).click()
    visit.settle()
    with torch.no_grad():
        expected = studio.field.decode(tokens_of(studio, 0)[:, [0, 2, 3]], size=(32, 32))[0]
    near(visit.array("shown.a"), expected)
    head = studio.heads["tdsm-avg"]
    near(
        torch.tensor(visit.page.evaluate("[...shown.scores]")),
        head.scores(studio.image(0, 0), tokens_of(studio, 0), [0, 2, 3]),
        1e-5,
    )
    assert visit.text("how") == "exact: the field decodes again"
    visit.click("#none")
    near(visit.array("shown.a"), parts_of(studio, 0, "additive", 32).base[0])


def test_decibels_are_counted_as_everywhere(visit, studio):
    visit.page.locator("#size").fill("0")
    visit.settle()
    visit.tile(1).click()
    parts = parts_of(studio, 0, "additive", 8)
    picture = parts.base[0] + parts.components[0, [0, 2, 3]].sum(0)
    image = studio.image(0, 0).movedim(1, -1)
    both = [psnr(picture[None], other).item() for other in (image, parts.reconstruction)]
    assert visit.text("shown-caption") == "shown, 8×8 · {:.1f} dB to the input · {:.1f} dB to all tokens".format(*both)


def test_all_none_and_invert(visit):
    visit.tile(0).click()
    visit.click("#invert")
    assert visit.on() == [0]
    visit.click("#all")
    assert visit.on() == [0, 1, 2, 3]
    visit.click("#none")
    assert visit.on() == []
    assert visit.text("count") == "0 of 4 tokens on"


@pytest.mark.parametrize("head", [0, 1, 2])
def test_probabilities_are_those_of_the_fitted_head(visit, studio, head):
    visit.select("head", str(head))
    fitted = list(studio.heads.values())[head]
    shown = [float(row.split("\n")[-1].split()[0]) for row in visit.page.locator("#classes li").all_inner_texts()]
    probabilities = fitted.scores(studio.image(0, 0), tokens_of(studio, 0)).softmax(0)
    assert shown == pytest.approx((100 * probabilities).tolist(), abs=0.51)
    visit.tile(3).click()
    visit.settle()
    expected = fitted.scores(studio.image(0, 0), tokens_of(studio, 0), [0, 1, 2])
    near(torch.tensor(visit.page.evaluate("[...shown.scores]")), expected, 1e-4)


def test_pointing_names_who_speaks_there_ranked_and_signed(visit, studio):
    box = visit.page.locator("#shown").bounding_box()
    row, column = 9, 20
    visit.page.mouse.move(box["x"] + (column + 0.5) * box["width"] / 32, box["y"] + (row + 0.5) * box["height"] / 32)
    said = parts_of(studio, 0, "additive", 32).components[0, :, row, column, 0]
    assert visit.text("here-words").startswith(f"Row {row}, column {column}:")
    lines = [line.split("\n") for line in visit.page.locator("#here li").all_inner_texts()]
    order = said.abs().argsort(descending=True).tolist()
    assert [line[0] for line in lines] == [f"token {k}" for k in order]
    values = [float(line[-1].replace("−", "-")) for line in lines]
    assert values == pytest.approx(said[order].tolist(), abs=6e-4)
    assert all(line[-1][0] in "+−" for line in lines)


def test_pointing_at_a_token_shows_where_it_speaks(visit, studio):
    assert visit.page.locator("#overlay").is_hidden()
    visit.tile(1).hover()
    said = parts_of(studio, 0, "additive", 32).components[0, 1, ..., 0].abs()
    seen = pixels(visit, "overlay", channel=3)
    assert (seen - (235 * (1.5 * said / said.max()).clamp(max=1))).abs().max() <= 1


def test_a_box_names_and_switches_the_tokens_that_speak_in_it(visit, studio):
    box = visit.page.locator("#shown").bounding_box()
    at = [
        box[key] + (place + 0.5) * box[side] / 32
        for place in (4, 15)
        for key, side in (("x", "width"), ("y", "height"))
    ]
    visit.page.mouse.move(*at[:2])
    visit.page.mouse.down()
    visit.page.mouse.move(*at[2:])
    visit.page.mouse.up()
    energy = parts_of(studio, 0, "additive", 32).components[0, :, 4:16, 4:16].square().sum((1, 2, 3))
    share = energy / energy.sum()
    order = share.argsort(descending=True).tolist()
    most = next(n for n in range(1, 5) if share[order[:n]].sum() >= 0.5)
    assert visit.text("here-words").endswith(f"{', '.join(map(str, order[:most]))}.")
    visit.click("#box-off")
    assert visit.on() == sorted(order[most:])
    visit.click("#box-only")
    assert visit.on() == sorted(order[:most])
    visit.click("#box-clear")
    assert visit.page.locator("#box").is_hidden()


def test_sliding_the_resolution_decodes_anew(visit, studio):
    side = 64
    number = studio.sizes.index(side)
    visit.page.locator("#size").fill(str(number))
    visit.settle()
    near(visit.array("loaded.a.view.components"), parts_of(studio, 0, "additive", side).components[0])
    assert visit.text("size-words") == "64 × 64"
    assert visit.page.evaluate("document.getElementById('shown').width") == 64


def test_two_images_are_compared_and_a_token_swapped_between_them(visit, studio):
    visit.click("#compare")
    visit.page.locator(".thumb").nth(5).click()
    visit.settle()
    near(visit.array("loaded.b.view.components"), parts_of(studio, 5, "additive", 32).components[0])
    visit.page.locator(".cell:has([data-token='2']) .swap").click()
    visit.settle()
    first, second = tokens_of(studio, 0), tokens_of(studio, 5)
    mixed = first.clone()
    mixed[:, 2] = second[:, 2]
    with torch.no_grad():
        near(visit.array("shown.a"), studio.field.decode(mixed, size=(32, 32))[0])
        second[:, 2] = first[:, 2]
        near(visit.array("shown.b"), studio.field.decode(second, size=(32, 32))[0])
    assert visit.text("count") == "4 of 4 tokens on, 1 swapped"
    assert "exact" in visit.text("how")


def test_images_are_found_by_class_mistake_and_number(visit, studio):
    labels, said = studio.listing(0)["labels"], studio.listing(0)["predicted"]["tdsm-avg"]

    def rows():
        return [int(thumb.get_attribute("data-row")) for thumb in visit.page.locator(".thumb").all()]

    assert rows() == list(range(40))
    visit.select("class", "3")
    assert rows() == [row for row, label in enumerate(labels) if label == 3]
    visit.select("filter", "wrong\ntdsm-avg")
    assert rows() == [row for row, label in enumerate(labels) if label == 3 and said[row] != 3]
    visit.select("class", "")
    visit.select("filter", "psnr")
    found = studio.faithfulness(0)
    assert rows() == [found["rows"][at] for at in np.argsort(found["psnr"])][:40]
    visit.select("filter", "")
    visit.page.locator("#search").fill("17")
    visit.settle()
    assert rows() == [17]


def test_a_dropped_picture_is_taken_apart_and_a_bad_one_named(visit, studio):
    visit.page.locator("#file").set_input_files(
        {"name": "my cat's.png", "mimeType": "image/png", "buffer": picture(40)}
    )
    visit.until("explorer.isQuiet && explorer.state.a.shelf === 3")
    pixels = tdsm.data.decode_image(picture(40), "grey", 8).float() / 127.5 - 1
    with torch.no_grad():
        parts = tdsm.decompose(studio.field, studio.field.encode(pixels[None]), (32, 32), method="additive")
    near(visit.array("loaded.a.view.components"), parts.components[0])
    visit.page.evaluate(DROP, "<html>")
    visit.page.locator("#problem").wait_for()
    assert "is a web page, not an image" in visit.text("problem")
    assert visit.errors == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]
    visit.errors.clear()


def test_a_name_is_text_wherever_it_stands(visit):
    assert HOSTILE in visit.text("title")
    assert HOSTILE in visit.page.locator("#classes li").first.inner_text()
    assert visit.page.locator("img").count() == 0
    assert visit.page.title().startswith("digits <img")


# ---------------------------------------------------------------- keyboard and ears


def test_everything_can_be_done_by_keyboard(visit):
    first, second = visit.page.evaluate(TILES)[:2]
    visit.tile(first).focus()
    visit.page.keyboard.press("Space")
    assert first not in visit.on()
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.evaluate("Number(document.activeElement.dataset.token)") == second
    visit.page.keyboard.press("o")
    assert visit.on() == [second]
    for key, on in (("i", [k for k in range(4) if k != second]), ("n", []), ("a", [0, 1, 2, 3])):
        visit.page.keyboard.press(key)
        assert visit.on() == on
    visit.page.locator("#shown").focus()
    visit.page.keyboard.press("ArrowDown")
    assert "Row 17, column 16" in visit.page.locator("#live").inner_text()
    for key in ("Shift+ArrowRight", "Shift+ArrowDown"):
        visit.page.keyboard.press(key)
    assert visit.text("here-words").startswith("Rows 17 to 18, columns 16 to 17:")
    visit.page.keyboard.press("Delete")
    assert 0 < len(visit.on()) < 4
    visit.page.keyboard.press("Escape")
    assert visit.text("here-words").startswith("Point at")
    visit.page.locator("#methods [aria-checked=true]").focus()
    visit.page.keyboard.press("ArrowRight")
    visit.settle()
    assert visit.page.locator("#methods [aria-checked=true]").inner_text() == "leave one out"


def test_whoever_listens_hears_names_and_numbers(visit):
    tile = visit.tile(0)
    assert re.fullmatch(
        r"token 0, [\d.]+ % of the energy, centre row \d+, column \d+, [+−][\d.]+ for .*",
        tile.get_attribute("aria-label"),
    )
    tile.click()
    assert visit.page.locator("#live").inner_text() == "token 0 off, 3 of 4 on"
    unnamed = """[...document.querySelectorAll("button, select, input, canvas[tabindex]")]
        .filter((one) => one.offsetParent && !(one.ariaLabel || one.innerText?.trim() || one.labels?.length))
        .map((one) => one.outerHTML)"""
    assert visit.page.evaluate(unnamed) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 800, 1280])
def test_nothing_is_wider_than_the_window(browser, site, width, scheme):
    visit = Visit(browser, f"http://127.0.0.1:{site.port}/?token={site.token}", color_scheme=scheme)
    visit.page.set_viewport_size({"width": width, "height": 900})
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(253, 253, 251)") == (scheme == "light")
    visit.close()


# ---------------------------------------------------------------- taking away


def ran(code):
    """Run lines of Python; return their names."""
    names = {}
    with redirect_stdout(StringIO()):
        exec(code, names)
    return names


def test_the_copied_call_gives_what_is_seen(visit, studio):
    for change in (
        lambda: visit.tile(2).click(),
        lambda: visit.click("[data-method='0']"),
        lambda: visit.click("input[value=exact]"),
        lambda: visit.select("head", "2"),
    ):
        change()
        visit.settle()
    for _ in range(2):
        names = ran(visit.text("python"))
        near(visit.array("shown.a"), names["picture"])
        near(visit.array("loaded.a.view.components"), names["components"])
        near(torch.tensor(visit.page.evaluate("[...shown.scores]")), names["scores"], 1e-4)
        visit.click("input[value=sum]")
    visit.click("#compare")
    visit.page.locator(".thumb").nth(5).click()
    visit.settle()
    visit.page.locator(".cell:has([data-token='1']) .swap").click()
    visit.settle()
    near(visit.array("shown.a"), ran(visit.text("python"))["picture"])


def test_the_copied_call_of_a_dropped_picture_reads_it_where_it_is(visit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my 'cat' ü.png").write_bytes(picture(40))
    visit.page.locator("#file").set_input_files(str(tmp_path / "my 'cat' ü.png"))
    visit.until("explorer.isQuiet && explorer.state.a.shelf === 3")
    names = ran(visit.text("python"))
    near(visit.array("loaded.a.view.components"), names["components"])


def test_arrays_and_a_picture_can_be_kept(visit, studio, tmp_path):
    visit.tile(3).click()
    with visit.page.expect_download() as download:
        visit.page.locator("#npz").click()
    download.value.save_as(tmp_path / "tdsm.npz")
    arrays = np.load(tmp_path / "tdsm.npz", allow_pickle=False)
    parts = parts_of(studio, 0, "additive", 32)
    near(torch.from_numpy(arrays["components"]), parts.components[0])
    near(torch.from_numpy(arrays["picture"]), parts.base[0] + parts.components[0, :3].sum(0))
    near(torch.from_numpy(arrays["image"]), studio.image(0, 0)[0].movedim(0, -1))
    assert arrays["kept"].tolist() == [0, 1, 2]
    with visit.page.expect_download() as download:
        visit.page.locator("#png").click()
    download.value.save_as(tmp_path / "tdsm.png")
    assert tdsm.data.decode_image(tmp_path / "tdsm.png").shape[0] == 3


# ---------------------------------------------------------------- the page for a file


def test_an_exported_page_works_from_a_file_and_asks_nobody(browser, studio, tmp_path):
    page, words = exported_page(replace(studio, classes=(HOSTILE, *studio.classes[1:])), [(0, 3), (0, 8)])
    (tmp_path / "page.html").write_text(page)
    visit = Visit(browser, f"file://{tmp_path}/page.html")
    assert visit.page.locator("#second").is_hidden()
    parts, error = parts_of(studio, 3, "additive", 32), float(re.search(r"off by more than ([\d.]+)\.", words)[1])
    level = (parts.reconstruction.max() - parts.reconstruction.min()).item() / 255
    near(visit.array("shown.a"), parts.reconstruction[0], level)
    visit.tile(1).click()
    near(visit.array("shown.a"), parts.reconstruction[0] - parts.components[0, 1], level + error + 1e-3)
    falls = studio.falls(0, 3, 0)
    near(torch.tensor(visit.page.evaluate("[...shown.scores]")), falls.blank + falls.by_token[[0, 2, 3]].sum(0), 0.05)
    assert visit.page.locator("input[value=exact]").is_disabled()
    assert words in visit.text("footnote")
    near(
        torch.from_numpy(np.float32(ran(visit.text("python"))["picture"])),
        parts.base[0] + parts.components[0, [0, 2, 3]].sum(0),
        1e-5,
    )
    visit.page.locator(".thumb").nth(1).click()
    visit.settle()
    near(
        visit.array("shown.a"),
        parts_of(studio, 8, "additive", 32).reconstruction[0] - parts_of(studio, 8, "additive", 32).components[0, 1],
        0.05,
    )
    assert visit.asked == [f"file://{tmp_path}/page.html"]
    visit.close()


def test_a_notebooks_frame_draws_the_page(browser, tmp_path):
    studio = random_studio(count=2)
    frame = tdsm.show(studio.field, torch.cat([studio.image(0, 0), studio.image(0, 1)]))._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<meta charset=utf-8>{frame}")
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"file://{tmp_path}/notebook.html")
    inner = page.locator("iframe").element_handle().content_frame()
    inner.wait_for_load_state()
    inner.evaluate("explorer.ready")
    inner.locator(".tile").first.click()
    assert inner.locator("#count").inner_text() == "4 of 5 tokens on"
    context.close()


def test_a_field_alone_waits_for_a_picture(browser):
    site = Site(replace(random_studio(), shelves=()))
    visit = Visit(browser, f"http://127.0.0.1:{site.port}/?token={site.token}")
    assert "drop one" in visit.text("strip")
    visit.page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    visit.until("explorer.isQuiet && Boolean(explorer.loaded?.a)")
    assert json.loads(visit.page.evaluate("JSON.stringify(explorer.loaded.a.view.components.shape)"))[0] == 5
    visit.close()
    site.close()
