import io
import sys

import pytest

from tdsm.base import progress
from tdsm.base.progress import Progress, phase, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then_with_rate_and_time_left(capsys, clock):
    with Progress("training", total=100, done=20, unit="step") as bar:
        for _ in range(4):
            clock.now += 6
            bar.advance(10, note="loss 0.5")
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    # 20 of 80 steps in 12 s, then 40 in 24 s: what an earlier run had done is no part of the rate.
    assert first == "training: 40/100, 1.67 step/s, 12 s, 36 s left loss 0.5"
    assert second == "training: 60/100, 1.67 step/s, 24 s, 24 s left loss 0.5"
    assert captured.out == ""


def test_short_work_leaves_no_line_in_a_log(capsys, clock):
    assert list(track("abc", "reading")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("training", total=4, unit="step") as bar:
        bar.advance(3, note="12.34 dB")
    text = terminal.getvalue()
    assert "training" in text
    assert "3/4" in text
    assert "step/s" in text
    assert "12.34 dB" in text


def test_the_bar_ends_with_the_work_that_fails(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Progress("training", total=4)
    with pytest.raises(ZeroDivisionError), bar:
        raise ZeroDivisionError
    assert not bar.bar.live.is_started


def test_a_note_stays_until_the_next():
    with Progress("x", total=3) as bar:
        bar.advance(note="a")
        bar.advance()
        assert (bar.note, bar.done) == ("a", 2)


def test_items_of_unknown_number_need_a_total():
    assert list(track(iter([1, 2]), "x", total=2)) == [1, 2]


def test_a_phase_says_at_once_what_is_under_way(capsys):
    with phase("reading"):
        assert capsys.readouterr().err == "reading …\n"
    with phase("reading", quiet=True):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_phase_as_a_moving_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with phase("reading"):
        pass
    assert "reading" in terminal.getvalue()
    assert "…" not in terminal.getvalue()
