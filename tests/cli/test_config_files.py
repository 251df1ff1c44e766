import pytest

from infinity_jax import config_files
from infinity_jax.errors import UserError

FILE = """
import ml_collections

def get_config(argument=None):
    steps = 2 if argument == "debug" else 100
    train = {"steps": steps, "rate": 0.1, "every": "10%", "on": False}
    return ml_collections.ConfigDict({"train": train, "model": {"sizes": (1, 2)}, "data": {"source": "a"}})
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "small.py"
    file.write_text(FILE)
    return str(file)


def test_argument_and_overrides(path):
    assert config_files.load(path).train.steps == 100
    assert config_files.load(f"{path}:debug").train.steps == 2
    overrides = [
        "train.steps=7",
        "train.rate=2",
        "train.every=9",
        "model.sizes=(3,4,5)",
        "data.source=folder:a b",
    ]
    config = config_files.load(f"{path}:debug", [f"--config.{override}" for override in overrides])
    assert config.to_dict() == {
        "train": {"steps": 7, "rate": 2.0, "every": "9", "on": False},
        "model": {"sizes": (3, 4, 5)},
        "data": {"source": "folder:a b"},
    }


def test_the_config_is_locked(path):
    config = config_files.load(path)
    with pytest.raises(AttributeError):
        config.train.stepps = 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.train.stepz=5", "unknown config key config.train.stepz; did you mean config.train.steps?"),
        ("--config.trian.steps=5", "did you mean config.train.steps?"),
        ("--config.steps=5", "did you mean config.train.steps?"),
        ("--config.rate=5", "unknown config key config.rate; did you mean config.train.rate?"),
        ("--config.train=5", "unknown config key config.train;"),
        ("--config.train.steps=many", "'many'.*same type"),
        ("--config.train.steps=1.5", "'1.5'.*same type"),
        ("--config.train.on=perhaps", "'perhaps'.*same type"),
        ("--config.train.steps", "--config.key=value"),
        ("--steps=5", "unknown argument '--steps=5'"),
    ],
)
def test_mistakes_are_named(path, override, words):
    with pytest.raises(UserError, match=words):
        config_files.load(path, [override])


def test_short_names_of_keys_name_those_that_may_be_meant():
    for short, meant in (
        ("lr", "config.optim.learning_rate?"),
        ("scales", "config.correction.scales or config.data.scales?"),
        ("batch", "config.train.batch_size?"),
    ):
        with pytest.raises(UserError) as refused:
            config_files.load("emoji", [f"--config.{short}=1"])
        assert str(refused.value).endswith(f"unknown config key config.{short}; did you mean {meant}")


def test_missing_file_names_those_that_exist(path):
    with pytest.raises(UserError, match=r"no config file .*smal\.py; there are: .*small\.py"):
        config_files.load(path.replace("small", "smal"))


def test_a_packed_config_is_found_by_its_name_and_a_file_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("emoji:debug", "configs/emoji.py:debug", "pods/v5e_256:2.2b,0.06M", "sweeps/emoji"):
        assert config_files.load(name)
    (tmp_path / "emoji.py").write_text(FILE)
    assert config_files.load("emoji").train.steps == 100
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "emoji.py").write_text(FILE)
    assert config_files.load("configs/emoji.py").train.steps == 100
    with pytest.raises(
        UserError,
        match=r"no config file emojis \(did you mean emoji\?\); there are: .*, emoji, .*, pods/v5e_256, ",
    ):
        config_files.load("emojis")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        *[("train.steps", "2 epochs", "2 epochs"), ("train.steps", "10%", "10%"), ("train.steps", "3", 3)],
        *[("train.rate", "1,2", (1.0, 2.0)), ("train.rate", "(1,)", (1.0,)), ("model.sizes", "5", (5,))],
        *[("train.on", "TRUE", True), ("train.on", "0", False), ("data.source", "10%", "10%")],
    ],
)
def test_a_value_is_read_by_the_type_in_the_file(key, text, value, path):
    section, name = key.split(".")
    assert config_files.load(path, [f"--config.{key}={text}"])[section][name] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os\nos.no_such_name", "no_such_name"),
        ("def (", "cannot be read: invalid syntax"),
        (
            "from infinity_jax.presets import preset\ndef get_config(name): preset(name)",
            "^unknown preset '3b'; known: ",
        ),
    ],
)
def test_a_file_that_gives_no_config_says_why(text, message, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        config_files.load(f"{file}:3b")
