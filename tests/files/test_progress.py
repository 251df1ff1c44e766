"""Progress: plain lines where stderr is no terminal, a bar where it is, and from one process only."""

import io
import logging
import sys

import pytest

from infinity_jax.files import progress
from infinity_jax.files.progress import Progress, counted, in_words, waiting


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="absl")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_line_now_and_then_with_the_time_left(clock, lines):
    for _ in counted(range(6), "drawing", 6, "pictures"):
        clock[0] += 6
    assert lines() == [
        "drawing: 2 of 6 pictures, 24 s left",
        "drawing: 4 of 6 pictures, 12 s left",
        "drawing: 6 of 6 pictures, in 36 s",
    ]


def test_short_work_says_nothing(clock, lines):
    for _ in counted(range(5), "drawing", 5, "pictures"):
        clock[0] += 1
    assert lines() == []


def test_an_item_may_count_for_several_and_some_may_be_done_before(clock, lines):
    bar = Progress("encoding", 100, "pictures", done=40)
    clock[0] += 30
    bar.advance(30)
    clock[0] += 30
    bar.advance(0)
    bar.advance(20)
    assert lines() == ["encoding: 70 of 100 pictures", "encoding: 90 of 100 pictures, 15 s left"]
    items = counted([[1] * 4, [1] * 2], "comparing", 6, "pictures", len)
    for _ in items:
        clock[0] += 11
    assert lines()[2:] == ["comparing: 4 of 6 pictures", "comparing: 6 of 6 pictures, in 22 s"]


def test_numbers_of_a_step_are_shown_with_the_time_left(clock, lines):
    bar = Progress("training", 1000, "step")
    bar.show(50, {"loss": 0.5, "name": 2}, 0.9, steady=False)
    clock[0] += 3
    bar.show(55, {"loss": 0.4}, 0.6)
    clock[0] += 8
    bar.show(60, {"loss": 0.3}, 0.6)
    bar.show(1000, {"loss": 0.1}, 0.6)
    assert lines() == [
        "step 50/1000: loss 0.5 name 2 (0.9 s a step)",
        "step 60/1000: loss 0.3 (0.6 s a step, 9 min left)",
        "step 1000/1000: loss 0.1 (0.6 s a step)",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_no_control_characters_elsewhere(monkeypatch, clock, lines, capsys):
    for _ in counted(range(3), "drawing", 3, "pictures"):
        clock[0] += 60
    printed = capsys.readouterr()  # the lines go through the log, which may be shown on stderr
    assert not printed.out and not any(c < " " and c != "\n" for c in printed.err)
    assert not any(ord(character) < 32 for line in lines() for character in line)
    said, terminal = len(lines()), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in counted(range(3), "drawing", 3, "pictures"):
        clock[0] += 60
    assert "drawing: 100%" in terminal.getvalue() and "\r" in terminal.getvalue()
    assert len(lines()) == said


def test_another_process_than_the_first_is_silent(monkeypatch, clock, lines):
    monkeypatch.setattr(progress, "_silent", False)
    progress.be_silent()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    for _ in counted(range(3), "drawing", 3, "pictures"):
        clock[0] += 60
    with waiting("compiling"):
        pass
    assert not lines() and not terminal.getvalue()


def test_what_takes_long_is_said_once(monkeypatch, lines):
    monkeypatch.setattr(progress, "_SECONDS_UNSAID", 0.01)
    with waiting("compiling the sampler"):
        for _ in range(200):
            if lines():
                break
            progress.time.sleep(0.02)
    monkeypatch.setattr(progress, "_SECONDS_UNSAID", 60)
    with waiting("nothing"):
        pass
    assert lines() == ["compiling the sampler"]


def test_times_in_words():
    words = [in_words(s) for s in (0.2, 40.0, 99.0, 100.0, 720.0, 7200.0, 90000.0)]
    assert words == ["1 s", "40 s", "99 s", "2 min", "12 min", "2 h", "25 h"]
