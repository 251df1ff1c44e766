"""What libraries write by themselves stays off the terminal, unless a user asks for it."""

import os
import subprocess
import sys

from infinity_jax.runtime import start_up


def test_levels_are_set_where_the_user_has_set_none(monkeypatch):
    for name in start_up.QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    start_up.quiet_libraries()
    assert {name: os.environ[name] for name in start_up.QUIET} == start_up.QUIET | {
        "TF_CPP_MIN_LOG_LEVEL": "0"
    }
    for name in start_up.QUIET:
        monkeypatch.delenv(name, raising=False)


def test_preparing_the_emoji_prints_one_line_of_ours(tmp_path):
    """TFDS would print "Unknown size", and its bars; some pictures stand for all."""
    code = (
        "from infinity_jax.data import emoji_captions as e\n"
        "all_ = e.named_pictures()\n"
        "e.named_pictures = lambda: all_[::40]\n"
        f"e.prepare_emoji({str(tmp_path)!r})\n"
        "print('done')"
    )
    environment = {**os.environ, "INFINITY_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "done\n" and "Unknown size" not in done.stderr, done.stderr[-500:]
