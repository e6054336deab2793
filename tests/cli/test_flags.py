from typing import Annotated

import pytest
import tyro

from tdsm.base.registry import Registry
from tdsm.base.settings import Choice, Settings
from tdsm.cli.flags import FLAGS

THINGS: Registry[object] = Registry("thing", {"one": 1, "two": 2})


class Part(Settings):
    """A part."""

    thing: Annotated[str, Choice(THINGS)] = "one"
    several: tuple[Annotated[str, Choice(THINGS)], ...] = ("two",)
    count: int = 3


class Whole(Settings):
    """A whole of parts."""

    part: Part = Part()
    needed: int


def parse(*words, **options):
    return tyro.cli(Whole, args=words, registry=FLAGS, **options)


def test_flags_make_the_settings():
    assert parse("--needed", "4") == Whole(needed=4)
    assert parse("--needed", "4", "--part.thing", "two", "--part.several", "one", "two").part == Part(
        thing="two", several=("one", "two")
    )


def test_what_is_there_already_is_the_default():
    start = Whole(part=Part(thing="two", several=(), count=9), needed=1)
    assert parse(default=start) == start
    assert parse("--part.count", "5", default=start).part == Part(thing="two", several=(), count=5)


def test_the_names_are_shown_and_those_added_too(capsys):
    with THINGS.added("three", 3), pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert "A whole of parts." in shown
    assert "--part.thing {one,two,three}" in shown
    assert "--part.several [{one,two,three} [" in " ".join(shown.split())
    with THINGS.added("three", 3):
        assert parse("--needed", "1", "--part.thing", "three").part.thing == "three"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--part.thing", "tow"],
            "thing is 'tow': unknown thing 'tow', perhaps you meant 'two'; expected one of one, two.",
        ),
        (["--part.several", "one", "on"], "several.1 is 'on': unknown thing 'on', perhaps you meant 'one'"),
        (["--part.count", "x"], "invalid literal"),
        (["--part.cuont", "1"], "--part.count INT"),
    ],
)
def test_what_is_wrong_is_said_in_words(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--needed", "1", *words)
    assert caught.value.code == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert said in error
    assert "pydantic" not in error
