"""What all verbs share."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from tdsm.base.settings import Settings

RunFolder = Annotated[tyro.conf.Positional[Path], Field(description="Run folder of `tdsm train` or `tdsm demo`.")]


class Verb(Settings):
    """What a verb is told."""

    def execute(self) -> None:
        """Do it."""
        raise NotImplementedError

    def opening(self) -> str | None:
        """Return what is said first, behind the verb, of work that takes time."""
        return None

    def based(self) -> "Verb":
        """Return the same with the settings that flags start from, once it is known what it is about."""
        return self

    def shown(self) -> "Verb":
        """Return the same with the settings that help shows, at no cost."""
        return self.based()


def say(words: str) -> None:
    """Tell the person at the terminal; results that other programs read go to standard output instead."""
    print(words, file=sys.stderr, flush=True)


def say_next(verb: str, path: Path | str) -> None:
    """Tell what is usually done next."""
    say(f"next: tdsm {verb} {shlex.quote(str(path))}")
