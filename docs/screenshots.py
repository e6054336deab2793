"""Take the pictures of a page that the documentation shows: wide and narrow, light and dark.

    python docs/screenshots.py runs/digits/report.html --out docs/images

Needs `pip install playwright` and a Chromium on the PATH. `--whole` takes each page from top to bottom.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

WIDTHS, SCHEMES, HEIGHT = (1280, 420), ("light", "dark"), 900


def main() -> None:
    """Take every picture of every page named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, help="HTML files.")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="Folder of the pictures.")
    parser.add_argument("--whole", action="store_true", help="From top to bottom, not the first screen alone.")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("screenshots: no Chromium is on the PATH; install one (Debian: apt install chromium).")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for page in arguments.pages:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    path = arguments.out / f"{page.parent.name}-{page.stem}-{width}-{scheme}.webp"
                    path.write_bytes(small(taken(browser, page, width, scheme, whole=arguments.whole)))
                    print(path)
        browser.close()


def taken(browser: Browser, page: Path, width: int, scheme: str, *, whole: bool) -> bytes:
    """Return one picture as PNG; say on the terminal if the page is wider than its window."""
    window = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)  # type: ignore[arg-type]
    window.goto(page.resolve().as_uri())
    reach = window.evaluate("document.scrollingElement.scrollWidth")
    if reach > width:
        print(f"{page}: {reach} pixels wide in a window of {width}")
    picture = window.screenshot(full_page=whole)
    window.close()
    return picture


def small(picture: bytes) -> bytes:
    """Return the same picture as WEBP, a third of the size."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(buffer, format="WEBP", quality=85, method=6)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
