"""A checkpoint's config.json, key by key: wrong values are refused before weights are read, old files are read."""

import json
import shutil

import pytest

from infinity_jax.checkpoints.opened import open_checkpoint
from infinity_jax.errors import UserError
from infinity_jax.files import paths


@pytest.fixture
def folder(tmp_path):
    """The bundled checkpoint without its weights, which no refusal may need."""
    shutil.copy(paths.bundled_checkpoint() / "config.json", tmp_path / "config.json")
    return tmp_path


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("tokenizer", "base_width", "64", "tokenizer.base_width is '64'; it must be a whole number"),
        ("tokenizer", "bits", 0, "tokenizer.bits is 0"),
        ("tokenizer", "multipliers", 4, "tokenizer.multipliers is 4; it must be several"),
        ("transformer", "layers", -3, "transformer.layers is -3"),
        ("transformer", "heads", 0, "transformer.heads is 0"),
        ("transformer", "width", 1e6, "transformer.width is 1000000.0"),
        ("transformer", "drop_path", float("nan"), "transformer.drop_path is nan"),
        ("text", "max_length", "64", "text.max_length is '64'"),
        ("text", "encoder", 5, "text.encoder is 5"),
        ("sample", "tau", -1, "sample.tau is -1"),
        ("sample", "temperature", 1, "unknown config key sample.temperature; did you mean"),
        (None, "sample", [1], "sample is [1]; it must be a section"),
        (None, "scales", 64, "scales is 64; it must be text"),
        (None, "scales", "65px", "unknown scale preset '65px'"),
        (None, "origin", "here", "origin is 'here'; it must be a section"),
    ],
)
def test_wrong_values_are_refused(folder, section, key, value, message):
    config = json.loads((folder / "config.json").read_text())
    (config if section is None else config[section])[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as refused:
        open_checkpoint(folder)
    assert f"config.json: {message}" in str(refused.value)


def test_an_old_file_without_newer_keys_is_read(folder):
    config = json.loads((folder / "config.json").read_text())
    assert "decoder_multipliers" not in config["tokenizer"]
    open_checkpoint(folder)
