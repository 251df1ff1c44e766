"""A workdir: one run at a time, and what a start that was cut short leaves does not stand in the next one's way."""

from typing import Any
from unittest import mock

import pytest
from helpers.full_disks import full_disk

from infinity_jax.checkpoints import folder, pretrained
from infinity_jax.errors import UserError
from infinity_jax.training import run_config, start

RUN: Any = mock.NonCallableMock(spec=run_config.RunConfig)
RUN.tokenizer, RUN.model, RUN.data = "bundled", mock.Mock(bits=32, codes=0), mock.Mock(scales="64px")


def test_a_second_run_in_a_workdir_is_refused_by_name(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / ".00000010.png.0f.unfinished").write_text("half")
    with start.alone_in(tmp_path):
        assert not list((tmp_path / "samples").iterdir())
        with (
            pytest.raises(
                UserError, match=r"another process trains in .* now, process \d+ on .*another --workdir"
            ),
            start.alone_in(tmp_path),
        ):
            pass
    with start.alone_in(tmp_path):
        pass


def test_a_tokenizer_that_was_never_whole_is_copied_again(tmp_path, monkeypatch):
    """A full disk or a kill at the first start, also of an earlier version, which left the folder empty."""
    monkeypatch.setattr(run_config, "_check_drawing", lambda run, tokenizer: None)
    with full_disk(), pytest.raises(OSError):
        run_config.keep_tokenizer(RUN, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.safetensors").write_text("half")
    run_config.keep_tokenizer(RUN, tmp_path)
    assert pretrained.load_tokenizer(tmp_path / "tokenizer").config.bits == 32
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "tokenizer" / folder.CONFIG).unlink()
    with pytest.raises(UserError, match=r"tokenizer lacks config.json, which this run trains with; restore"):
        run_config.keep_tokenizer(RUN, tmp_path)
