import sys
from typing import Annotated

import pytest
from pydantic import ValidationError

from tdsm.base.errors import UsageError
from tdsm.base.registry import Registry
from tdsm.base.settings import Choice, Settings

THINGS: Registry[object] = Registry("thing", {"one": 1, "two": 2})


class Chosen(Settings):
    thing: Annotated[str, Choice(THINGS)] = "one"
    several: tuple[Annotated[str, Choice(THINGS)], ...] = ()


def test_an_entry_is_imported_when_first_asked_for(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    registry = Registry("function", {"a": "colorsys:rgb_to_hls", "b": "no.such.module:x"})
    assert "colorsys" not in sys.modules
    assert (list(registry), len(registry), "a" in registry, "c" in registry) == (["a", "b"], 2, True, False)
    assert "colorsys" not in sys.modules
    assert registry["a"] is sys.modules["colorsys"].rgb_to_hls
    assert registry["a"] is registry["a"]


HINT = ", perhaps you meant 'two'"


@pytest.mark.parametrize(("name", "near"), [("tow", HINT), ("xyz", ""), (["two"], ""), (3, ""), (None, "")])
def test_an_unknown_name_is_answered_with_the_nearest_and_with_all(name, near):
    with pytest.raises(UsageError) as caught:
        THINGS[name]
    assert str(caught.value) == f"unknown thing {name!r}{near}; expected one of one, two."


def test_an_entry_added_for_a_while_is_known_and_then_gone():
    with THINGS.added("three", 3):
        assert (THINGS["three"], list(THINGS)) == (3, ["one", "two", "three"])
        assert Chosen(thing="three", several=("three", "one")).thing == "three"
    assert "three" not in THINGS
    with pytest.raises(ValidationError):
        Chosen(thing="three")


def test_a_name_is_not_given_twice_and_an_error_drops_what_was_added():
    with pytest.raises(UsageError, match="there is a thing 'one' already"), THINGS.added("one", 5):
        pass
    with pytest.raises(KeyboardInterrupt), THINGS.added("three", 3):
        raise KeyboardInterrupt
    assert dict(THINGS) == {"one": 1, "two": 2}


def test_a_wrong_setting_is_answered_like_a_wrong_name():
    with pytest.raises(ValidationError) as caught:
        Chosen(thing="tow", several=("one", "on"))
    assert {error["loc"]: error["msg"] for error in caught.value.errors()} == {
        ("thing",): "unknown thing 'tow', perhaps you meant 'two'; expected one of one, two.",
        ("several", 1): "unknown thing 'on', perhaps you meant 'one'; expected one of one, two.",
    }
    with pytest.raises(ValidationError, match="valid string"):
        Chosen(thing=1)
