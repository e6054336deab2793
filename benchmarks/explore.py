"""Answer times of the page to play with: `python benchmarks/explore.py [--rounds N] [--run RUN] [RESULT.md]`.

The small preset with random weights, 32 tokens × 96, 32×32×3, in Chromium on this machine: from opening the address to
a drawn page, from a click to a drawn picture, in the page and by the server, at the images' own size and at 256×256;
and how large a page of 50 images × 64 tokens for a file is, of random weights and of RUN.
"""

import argparse
import shutil
import statistics
import sys
import threading
import time
from datetime import date
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from tdsm.base.environment import describe_environment
from tdsm.base.io import write_text
from tdsm.base.text import markdown_table
from tdsm.classification.heads import TDSMClassifier
from tdsm.cli.presets import cifar10_small
from tdsm.explore.export import chosen_images, exported_page
from tdsm.explore.heads import FittedHead
from tdsm.explore.server import listen, new_token, serve
from tdsm.explore.studio import Shelf, Studio, open_studio
from tdsm.features.config import MapConfig
from tdsm.models.field import NeuralField

SIZE, CLASSES, IMAGES = (32, 32), 10, 200
FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
TIMED = """async ([work, count]) => {
    const spent = [];
    for (let at = 0; at < count; at++) {
        const began = performance.now();
        await works[work](at);
        spent.push(performance.now() - began);
    }
    return spent;
}"""
WORKS = """globalThis.works = {
    toggle: (at) => toggle(at % about.tokens),
    image: (at) => explorer.choose({ shelf: 0, row: 10 + at }),
}"""


def random_studio(num_tokens):
    """Return a studio of random weights and images, with a head that is a sum over tokens and one that is not."""
    torch.manual_seed(0)
    field = NeuralField(cifar10_small().field.model_copy(update={"num_latents": num_tokens})).eval()
    images = torch.rand(IMAGES, 3, *SIZE) * 2 - 1
    shelf = Shelf("test", lambda rows: images[list(rows)], torch.arange(IMAGES) % CLASSES, "")
    heads = {
        kind: FittedHead(kind, "", field, "solo", TDSMClassifier(num_tokens, CLASSES, kind, SIZE).eval(), MapConfig())
        for kind in ("avg", "cnn")
    }
    classes = tuple(f"class {number}" for number in range(CLASSES))
    return Studio("random weights", field, (shelf,), SIZE, 3, "", classes, heads)


def first_view(browser, address):
    """Return the seconds from opening the address to a drawn page, requests and bytes received."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, sizes = context.new_page(), []
    page.on("requestfinished", lambda request: sizes.append(request.sizes()["responseBodySize"]))
    began = time.perf_counter()
    page.goto(address)
    page.evaluate("explorer.ready")
    page.evaluate(FRAME)
    spent = time.perf_counter() - began
    context.close()
    return spent, len(sizes), sum(sizes)


def settle(page):
    """Wait until the page asks for nothing any more."""
    while not page.evaluate("explorer.isQuiet"):
        page.wait_for_timeout(20)


def measure(browser, address, rounds):
    """Return rows of (what, milliseconds)."""
    views = [first_view(browser, address) for _ in range(6)][1:]  # the first starts the browser's processes
    rows = [("first view: address to drawn page", [1e3 * spent for spent, _, _ in views])]
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(address)
    page.evaluate("explorer.ready")
    page.evaluate(WORKS)

    def timed(words, work, count=rounds):
        rows.append((words, page.evaluate(TIMED, [work, count])))
        print(f"{words}: {statistics.median(rows[-1][1]):.0f} ms", file=sys.stderr, flush=True)

    timed("another image, all of it", "image")
    timed("toggle in the page: sum and probabilities", "toggle")
    page.locator("#head").select_option("1")
    settle(page)
    timed("toggle, probabilities of a CNN by the server", "toggle")
    page.locator("#head").select_option("0")
    page.locator("input[value=exact]").check()
    timed("toggle by the server: exact removal and probabilities", "toggle")
    page.locator("input[value=sum]").check()
    page.locator("#size").fill("6")
    settle(page)
    timed("256×256: another image, all of it", "image", 5)
    timed("256×256: toggle in the page", "toggle", rounds // 2)
    page.locator("input[value=exact]").check()
    timed("256×256: toggle by the server", "toggle", rounds // 2)
    return rows, views[-1][1:]


def exported(studio, name):
    """Say how large a page of 50 images is."""
    page, words = exported_page(studio, chosen_images(studio, 50))
    return f"- {name}: 50 images × {studio.num_tokens} tokens, {len(page.encode()) / 1e6:.2f} MB. {words}"


def main():
    """Measure and print, and write the table if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, nargs="?", help="Markdown file to write")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--run", type=Path, help="a trained run to export as well")
    arguments = parser.parse_args()
    studio, opened, token = random_studio(32), listen(), new_token()
    studio.warm_up()
    server = serve(studio, opened, token)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{opened.getsockname()[1]}/?token={token}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        rows, (requests, received) = measure(browser, address, arguments.rounds)
        version = browser.version
        browser.close()
    server.should_exit = True
    thread.join()
    where = describe_environment()
    lines = [f"{date.today()}, {where['processor']}, {torch.get_num_threads()} threads, Chromium {version}.", ""]
    cells = [[words, f"{statistics.median(spent):.0f}", f"{max(spent):.0f}", str(len(spent))] for words, spent in rows]
    lines.append(markdown_table(["what", "median, ms", "largest, ms", "of"], cells, ["what"]))
    lines += ["", f"- The first view takes {requests} requests and {received / 1e3:.0f} kB."]
    lines.append(exported(random_studio(64), "Random weights"))
    if arguments.run is not None:
        lines.append(exported(open_studio(arguments.run, lambda words: None), arguments.run.name))
    print("\n".join(lines))
    if arguments.result is not None:
        write_text(arguments.result, "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
