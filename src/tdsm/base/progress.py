"""Progress of long work: a bar with rate and time left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
LINE_SECONDS = 10.0


class Progress:
    """Show how far a piece of work has come, unless `quiet`; use as a context manager.

    >>> with Progress("decoding", total=2) as progress:
    ...     progress.advance(2, note="loss 0.1")
    """

    def __init__(self, description: str, total: int, done: int = 0, unit: str = "it", quiet: bool = False):
        self.description, self.total, self.done, self.unit = description, total, done, unit
        self.started, self.start_done, self.note = time.monotonic(), done, ""
        self.last_line, self.last_done = self.started, -1
        self.quiet = quiet
        self.bar: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty() and not self.quiet:
            self.bar = _bar()
            self.bar.start()
            self.task = self.bar.add_task(self.description, total=self.total, completed=self.done, rate="", note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif time.monotonic() - self.started > LINE_SECONDS and self.done != self.last_done:
            self._line()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count `count` more as done; `note` stands behind the rate until the next one."""
        self.done += count
        self.note = self.note if note is None else note
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, rate=self._rate(), note=self.note)
        elif time.monotonic() - self.last_line > LINE_SECONDS:
            self._line()

    def _rate(self) -> str:
        elapsed = time.monotonic() - self.started
        return f"{(self.done - self.start_done) / max(elapsed, 1e-9):.3g} {self.unit}/s"

    def _line(self) -> None:
        if self.quiet:
            return
        self.last_line, self.last_done = time.monotonic(), self.done
        elapsed = self.last_line - self.started
        left = elapsed / max(self.done - self.start_done, 1) * (self.total - self.done)
        words = f"{self.description}: {self.done}/{self.total}, {self._rate()}, {elapsed:.0f} s, {left:.0f} s left"
        print(f"{words} {self.note}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def phase(description: str, *, quiet: bool = False) -> Iterator[None]:
    """Say that work of unknown length is under way: a moving bar on a terminal, a line elsewhere.

    >>> with phase("reading the data", quiet=True):
    ...     pass
    """
    if quiet:
        yield
    elif sys.stderr.isatty():
        with _bar() as bar:
            bar.add_task(description, total=None, rate="", note="")
            yield
    else:
        print(f"{description} …", file=sys.stderr, flush=True)
        yield


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bar(*columns, TextColumn("{task.fields[rate]} {task.fields[note]}"), console=Console(stderr=True))


def track(items: Iterable[Item], description: str, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Pass items through and show how far they have come.

    >>> list(track([1, 2, 3], "counting"))
    [1, 2, 3]
    """
    total = len(items) if total is None else total  # type: ignore[arg-type]
    with Progress(description, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()
