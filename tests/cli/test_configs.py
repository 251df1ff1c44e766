"""The files of configs/: each documented key of each section can be changed, and what is changed is what is read."""

import dataclasses

import pytest

from infinity_jax import config_files
from infinity_jax.checkpoints.folder import read_config
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.files import paths
from infinity_jax.training.config import from_section
from infinity_jax.training.sections import SECTIONS

ARGUMENTS = (
    "",
    ":debug",
    ":index",
    ":stage2",
    ":8b,1M",
    ":2b,v5e_256",
    ":4.7b,0.25M",
    ":tokenizer",
    ":tokenizer_debug",
    ":64px",
    ":d36",
    ":b36",
    ":128",
)
GRIDS = [name for name in config_files.packed() if name.startswith(("sweeps/", "ablations/"))]
CONFIGS = [name for name in config_files.packed() if name not in GRIDS]


def loaded(name: str, *changes: str):
    return config_files.load(name, [f"--config.{change}" for change in changes], stages=True)


def command_of(config) -> str:
    kinds = {"upscaler": "train-upscaler", "tokenizer": "train"}
    return next((command for key, command in kinds.items() if key in config), "train-tokenizer")


def cases():
    for name in CONFIGS:
        for argument in ARGUMENTS:
            try:
                yield f"{name}{argument}", loaded(f"{name}{argument}")
            except UserError:
                continue


CASES = dict(cases())


def test_all_config_files_are_tried():
    assert (
        {path.partition(":")[0] for path in CASES} == set(CONFIGS) and len(CONFIGS) == 15 and len(GRIDS) == 7
    )
    assert {"t2i_progressive:debug", "emoji:index", "tokenizer:stage2", "pods/v5e_256:4.7b,0.25M"} <= set(
        CASES
    )


@pytest.mark.parametrize("path", CASES)
def test_every_field_of_every_section_is_a_key(path):
    config = CASES[path]
    sections = SECTIONS[command_of(config)]
    for one in [config, *config.get("stages", {}).values()]:
        for name, cls in sections.items():
            assert set(one[name]) == {field.name for field in dataclasses.fields(cls)}, name
        assert set(one) - {"tokenizer", "stages", "system", "stage"} == set(sections)


@pytest.mark.parametrize("path", CASES)
def test_what_every_field_is_changed_to_is_what_is_read(path):
    """Every key takes its own value as text, and every length of a run takes a number and text."""
    config, changes = CASES[path], []
    for name, cls in SECTIONS[command_of(config)].items():
        changes += [f"{name}.{field.name}={config[name][field.name]}" for field in dataclasses.fields(cls)]
    again = loaded(path, *changes)
    for name in SECTIONS[command_of(config)]:
        assert again[name].to_dict() == config[name].to_dict()
    for steps, text in (("7", "50%"), ("3 epochs", "2")):
        lengths = ("log_every", "checkpoint_every", "keep_every", "sample_every", "evaluate_every")
        changed = loaded(path, f"train.steps={steps}", *(f"train.{name}={text}" for name in lengths))
        values = changed.train.to_dict()
        values.pop("adversarial", None)
        train = from_section(values, examples=100 * changed.train.batch_size)
        expected = {"7": (7, 4), "3 epochs": (300, 2)}[steps]
        assert {(train.steps, getattr(train, name)) for name in lengths} == {expected}


@pytest.mark.parametrize("path", [path for path in CASES if "sample" in CASES[path]])
def test_strength_and_temperature_are_one_number_or_one_a_scale(path):
    sample = loaded(path, "sample.cfg=3", "sample.tau=1,2,0.5", "sample.unguided_scales=4,5").sample
    assert (sample.cfg, sample.tau, sample.unguided_scales) == (3.0, (1.0, 2.0, 0.5), (4, 5))
    assert loaded(path, "sample.cfg=(1,2)", "sample.unguided_scales=5").sample.unguided_scales == (5,)


@pytest.mark.parametrize(
    "change", ["model.layers=10%", "optim.learning_rate=1,2", "correction.scales=2 steps"]
)
def test_other_keys_refuse_what_lengths_and_strengths_may_be(change):
    config, (section, key) = loaded("emoji", change), change.partition("=")[0].split(".")
    with pytest.raises(UserError, match=rf"^{section}\.{key} is .*; it must be a "):
        from_dict(SECTIONS["train"][section], config[section], section)


def test_a_config_file_loads_another_without_taking_its_names():
    """The inner file, configs/t2i.py, has STAGES too."""
    assert list(loaded("configs/t2i_progressive.py:debug").stages) == ["px256", "px512", "px1024"]


def test_finetune_trains_the_bundled_models_further():
    bundled = read_config(paths.bundled_checkpoint())
    for argument, part in (("", "transformer"), (":tokenizer", "tokenizer")):
        config = loaded(f"finetune{argument}", "data.source=folder:mine", "train.steps=600")
        assert config.train.init_from == "bundled"
        sections = SECTIONS[command_of(config)]
        model, same = (from_dict(sections["model"], values, "") for values in (config.model, bundled[part]))
        assert model == same
        train = from_section(config.train, examples=100, cls=sections["train"])
        assert (train.checkpoint_every, train.sample_every, train.evaluate_every) == (60, 60, 60)
    with pytest.raises(UserError, match="'squeeze'; known: tokenizer, debug"):
        loaded("finetune:squeeze")
