"""What is said at the terminal: lines, tables, and letters that a terminal of few letters can show."""

import codecs
import shutil
import sys
import unicodedata

PIPED = 160  # columns of a table that no terminal shows
PLAIN = {
    "×": "x",
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "·": "*",
    "→": "->",
    "±": "+-",
    "‖": "||",
    "Σ": "sum",
    "∞": "inf",
    "“": '"',
    "”": '"',
    "’": "'",
    "\u2009": " ",
    "\u00a0": " ",
}


def show(markdown: str) -> None:
    """Tell what is written as Markdown, tables as tables: with lines on a terminal, in columns elsewhere."""
    from rich.console import Console
    from rich.markdown import Markdown

    is_terminal = sys.stderr.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else PIPED
    Console(stderr=True, width=width, highlight=False).print(Markdown(markdown))


def readable_streams() -> None:
    """Write what a stream's encoding cannot hold by letters that it can, instead of failing."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_letter(letter) for letter in error.object[error.start : error.end]), error.end


def _letter(letter: str) -> str:
    known = PLAIN.get(letter) or unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return known or "?"
