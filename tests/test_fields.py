"""Every key of every section of a config: its limits, and that what lies outside is refused wherever it comes from."""

import dataclasses
import json
import subprocess
import sys
from typing import Annotated, get_args, get_origin

import pytest

from infinity_jax import config_files
from infinity_jax.config import SampleConfig, TokenizerConfig, TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, OneOf, Range, Unlimited, check, described, hints_of, limits_of
from infinity_jax.runtime.mesh import MeshConfig
from infinity_jax.tools.scaling.grid import GridConfig, Hardware
from infinity_jax.training import sections
from infinity_jax.training.sections import SECTIONS

CLASSES = sorted(
    {*(cls for kind in SECTIONS.values() for cls in kind.values()), MeshConfig, GridConfig, Hardware},
    key=lambda cls: cls.__name__,
)
# A grid's axes are read by the grid itself.
FIELDS = [(cls, name) for cls in CLASSES for name in hints_of(cls) if name != "axes"]
NEEDED = {"steps": 10, "batch_size": 4, "encoder": "minilm", "max_length": 64, "base": "emoji"}
NEEDED |= {"axes": {"size": ("a",)}, "source": "emoji_captions", "scales": "64px"}


def needed(cls) -> dict:
    """Values of the fields that have no default."""
    fields = (field for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING)
    return {field.name: NEEDED[field.name] for field in fields}


def wrong_values(hint) -> list:
    """Values of other types, and values of the right one beyond the limits."""
    wrong = [None, {"a": 1}, object]
    for kind, limits in limits_of(hint):
        if kind in (int, float):
            wrong += ["1", True, [[1]], 10**400, -(10**400)]
            wrong += [float("nan"), float("inf"), -float("inf"), 1e300]
            for limit in limits:
                wrong += [n - 1 for n in (limit.at_least,) if n is not None]
                wrong += [n + 1 for n in (limit.at_most,) if n is not None]
                wrong += [n for n in (limit.above, limit.below) if n is not None]
        elif kind is bool:
            wrong += [0, 1, "true"]
        elif kind is str:
            wrong += [1, True, "a\0b"] + ["nonsense"] * any(isinstance(limit, OneOf) for limit in limits)
    return wrong


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_every_field_says_what_it_may_hold(cls, name):
    """A number has a range, a text the names that exist or whose matter it is."""
    assert issubclass(cls, Checked), f"{cls.__name__} is not checked: make it a `Checked`"
    for kind, limits in limits_of(hints_of(cls)[name]):
        if kind in (int, float):
            assert any(isinstance(limit, Range) and str(limit) for limit in limits), "give the number a Range"
        if kind is str:
            assert any(isinstance(limit, OneOf | Unlimited) for limit in limits), "OneOf, or say Unlimited"
    assert described(hints_of(cls)[name])


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_wrong_values_are_refused_from_a_file_with_the_keys_name(cls, name):
    for value in wrong_values(hints_of(cls)[name]):
        with pytest.raises(UserError, match=rf"part\.{name}\b"):
            from_dict(cls, {**needed(cls), name: value}, "part")


@pytest.mark.parametrize(("cls", "name"), FIELDS)
def test_wrong_numbers_are_refused_by_the_constructor(cls, name):
    for kind, limits in limits_of(hints_of(cls)[name]):
        for limit in limits:
            if kind not in (int, float) or get_origin(hints_of(cls)[name]) is not Annotated:
                continue
            if kind is get_args(hints_of(cls)[name])[0] and limit.at_least is not None:
                with pytest.raises(UserError, match=rf"^{name} is .*; it must be a .*number"):
                    cls(**{**needed(cls), name: kind(limit.at_least - 1)})


def test_types_are_checked_in_python_too():
    """In a process of its own: here the annotations of all functions are checked."""
    code = "from infinity_jax.config import TransformerConfig as C; C(layers='3')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: layers is '3'; it must be a whole number from 1 to 1,000" in done.stderr


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sample.tau", "-1", "sample.tau is -1.0; it must be a number from 0 to 1,000, or several"),
        ("sample.cfg", "1,nan", "sample.cfg is (1.0, nan)"),
        ("model.heads", "0", "model.heads is 0; it must be a whole number from 1 to 4,096"),
        ("train.seed", "-1", "train.seed is -1; it must be a whole number from 0 to 2^31 - 1"),
        ("optim.final_fraction", "-3", "optim.final_fraction is -3.0; it must be a number from 0 to 1"),
        ("optim.learning_rate", "inf", "optim.learning_rate is inf"),
        ("train.keep_best", "nonsense", "unknown train.keep_best 'nonsense'; use one of validation_loss, "),
        ("text.encoder", "bert", "unknown text.encoder 'bert'; use one of minilm, t5"),
        ("mesh.rules", "all", "unknown mesh.rules 'all'; use one of dp, fsdp"),
        ("train.batch_size", "0", "train.batch_size is 0"),
        ("train.checkpoint_every", "99999999999999999999", "train.checkpoint_every is 99999999999999999999"),
        ("tokenizer", "", "config.tokenizer is ''; name a folder"),
    ],
)
def test_a_run_is_refused_before_its_data_is_looked_for(key, value, message):
    config = config_files.load("emoji", [f"--config.{key}={value}", "--config.data.source=folder:none"])
    with pytest.raises(UserError) as refused:
        sections.read(config, "train")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.base_width", "0"),
        ("model.bits", "65"),
        ("discriminator.start_step", "-4"),
        ("train.keep_best", "fid"),
    ],
)
def test_a_tokenizers_run_is_refused_too(key, value):
    config = config_files.load("emoji_tokenizer", [f"--config.{key}={value}"])
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        sections.read(config, "train-tokenizer")


def test_a_missing_section_is_named():
    config = config_files.load("emoji").to_dict()
    del config["optim"]
    with pytest.raises(UserError, match="the config has no section optim; add it"):
        sections.read(config, "train")
    for name in ("loss", "train"):
        with pytest.raises(UserError, match=f"{name} is 5; it must be a section"):
            sections.read({**config, "optim": {}, name: 5}, "train")


def test_what_packed_configs_say_is_allowed():
    for name in config_files.packed():
        if not name.startswith(("sweeps/", "ablations/", "t2i", "pods/")):
            config = config_files.load(name, stages=True)
            kinds = {"upscaler": "train-upscaler", "tokenizer": "train"}
            sections.read(config, next((kinds[key] for key in kinds if key in config), "train-tokenizer"))


def test_numbers_as_text_in_a_checkpoints_config_json():
    section = json.loads('{"layers": "12", "width": 64}')
    with pytest.raises(UserError, match=r"transformer\.layers is '12'; it must be a whole number"):
        from_dict(TransformerConfig, section, "transformer")
    with pytest.raises(UserError, match=r"tokenizer.multipliers is \(1, 'a'\); it must be several"):
        from_dict(TokenizerConfig, json.loads('{"multipliers": [1, "a"]}'), "tokenizer")


def test_limits_read_as_words():
    assert str(Range(1)) == "of at least 1" and str(Range(above=0, below=1)) == "above 0 to below 1"
    assert str(Range(0, 2**31 - 1)) == "from 0 to 2^31 - 1" and str(Range(at_most=5)) == "up to 5"
    assert described(hints_of(SampleConfig)["guidance"]).startswith("one of logits, features")
    check(SampleConfig, {"cfg": 3, "tau": (1.0, 2)})
