"""Values of others in messages: one short printable line."""

import logging

from infinity_jax.errors import printable, shortened
from infinity_jax.runtime import start_up

HOSTILE = ["a" * 10**7, "\x1b[31m\n" * 100, b"\xff" * 10**6, 10**5000, -(10**5000)]
HOSTILE += [[1] * 10**6, ([],) * 10**6, {"a": 1}, 2.5, None]


def test_whatever_the_value_the_text_is_short():
    for value in HOSTILE:
        for quoted in (True, False):
            text = shortened(value, quoted=quoted)
            assert text.isprintable() and 0 < len(text) < 100


def test_small_values_are_written_whole():
    assert shortened("a b") == "'a b'" and shortened("a b", quoted=False) == "a b"
    assert shortened((1, 2)) == "(1, 2)" and shortened(3) == "3" and shortened(None) == "None"


def test_what_steers_a_terminal_is_escaped():
    assert printable("é 漢 a\tb\n") == "é 漢 a\tb\n"
    assert printable("\x1b[31m\x9b\u202e\ud800") == r"\x1b[31m\x9b\u202e\ud800"
    long = printable("a" * 10**6 + "; do this")
    assert len(long) < 2000 and long.startswith("aaa") and long.endswith("a; do this") and " ... " in long
    record = logging.LogRecord("a", logging.INFO, "f", 1, "read %s", ("\x1b[2J.png",), None)
    assert start_up._Printable("%(message)s").format(record) == r"read \x1b[2J.png"
