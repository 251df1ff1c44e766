"""Config files: `NAME[:argument]` with `--config.key=value` changes, as one locked ConfigDict.

NAME is the path of a Python file, or a config that comes with the package without its ".py": "emoji", "sweeps/emoji".
"""

import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_flags.tuple_parser import TupleParser

from infinity_jax.config import nearest
from infinity_jax.errors import UserError
from infinity_jax.fields import check, hints_of

T = TypeVar("T")
Section = Mapping[str, Any] | ConfigDict
# A wheel has the folder `configs/` of a checkout inside the package.
_PACKAGE = Path(__file__).parent
PACKED = next(folder / "configs" for folder in (_PACKAGE, _PACKAGE.parent) if (folder / "configs").is_dir())
# A number of steps, examples or epochs, or a part of a run; groups: number and unit. Text in a config file, as most
# lengths are plain numbers of steps there, and `training.config.in_steps` reads both.
DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(|steps?|%|epochs?|examples?)\s*")
_MOST_MEANT = 4
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def load(path: str, overrides: Sequence[str] = (), stages: bool = False) -> Any:
    """Reads the config that a file's `get_config(argument)` gives, and changes some of its keys.

    Args:
      path: a Python file or the name of a packed config, with `:argument` after it or not, like "emoji:debug"; a file
        of that name wins. (The argument is whatever the file makes of it: t2i.py takes "SIZE,STAGE".)
      overrides: "--config.section.key=value", each one item; the last of the same key counts. Where the config has
        stages, such a key is changed in all of them, and "--config.stages.NAME.section.key=value" changes it in one,
        whatever the order.
      stages: whether it may have stages, see `with_stages`.
    Returns:
      a locked ConfigDict: its keys are those of the file, no others. (Any: a type checker cannot know them.)
    Raises:
      UserError: no such file or name; a key that the file does not have (the nearest is named); a value of another
        type.
    """
    name, colon, argument = path.partition(":")
    module = load_module(_find(name))
    try:
        config = module.get_config(*([argument] if colon else []))
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; it must define get_config(), see configs/emoji.py"
        ) from error
    config.lock()
    if "stages" in config and not stages:
        raise UserError(
            f"{path} has the stages {', '.join(config.stages)}, which only infinity-jax train goes through; "
            "give a config of one stage, like configs/emoji.py"
        )
    changes = [_split(override, _keys(config)) for override in overrides]
    for key, text in _in_every_stage(changes, config):
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        try:
            value = _value(text, section.get_type(last))
        except (ValueError, KeyError) as error:
            raise UserError(
                f"config.{key} cannot be {text!r}; give a value of the same type as in {path}: {section[last]!r}"
            ) from error
        with section.ignore_type():
            section[last] = value
    return config


def load_module(file: Path) -> ModuleType:
    """Runs a Python file as a module of its own, so that config files can share code without being a package.

    Raises:
      UserError: there are mistakes in it.
    """
    spec: Any = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(file)  # as it was given: an ablation's record of its tokenizers is made from it
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, AttributeError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read: {error}; it must define get_config(), see configs/emoji.py"
        ) from error
    return module


def section(values: Any, **durations: str) -> ConfigDict:
    """Makes a section of a config file from its dataclass, so that every field can be changed by `--config.KEY=VALUE`.

    Args:
      values: an instance of the section's dataclass, see `training.sections`.
      durations: fields that are text in the file, like start_step="10%", and a number of steps in the dataclass.
    """
    return ConfigDict(dataclasses.asdict(dataclasses.replace(values)) | durations)


def packed(folder: str = "") -> list[str]:
    """Lists the names of the configs that come with the package, of one folder or of all: "emoji", "pods/v5e_256"."""
    files = sorted((PACKED / folder).rglob("*.py"))
    names = [file.relative_to(PACKED).with_suffix("").as_posix() for file in files]
    return [name for name in names if not name.endswith("/common")]


def _find(name: str) -> Path:
    """Finds a file by its path, or a packed config by its name; names in docs, "configs/emoji.py", work anywhere."""
    file, known = Path(name), name.removeprefix("configs/").removesuffix(".py")
    if file.is_file():
        return file
    if not file.suffix and file.with_suffix(".py").is_file():
        return file.with_suffix(".py")
    if known in packed():
        return PACKED / f"{known}.py"
    beside = sorted(str(f) for f in file.parent.glob("*.py")) if name.endswith(".py") else []
    near = difflib.get_close_matches(known, packed(), n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"no config file {name}{meant}; there are: {', '.join([*beside, *packed()])}")


def exists(path: str) -> bool:
    """Tells whether `load` would find a file or a packed config of this name, with `:argument` after it or not."""
    try:
        _find(path.partition(":")[0])
    except UserError:
        return False
    return True


def _in_every_stage(changes: Sequence[tuple[str, str]], config: Any) -> list[tuple[str, str]]:
    """Puts changes in the order in which they count, with a copy of those of no stage for each stage."""
    shared = [change for change in changes if not change[0].startswith("stages.")]
    copies = [(f"stages.{name}.{key}", text) for name in config.get("stages", ()) for key, text in shared]
    return [*shared, *copies, *(change for change in changes if change not in shared)]


def with_stages(config: ConfigDict, stages: Mapping[str, Any]) -> ConfigDict:
    """Adds a key `stages` to `config`, for training stage by stage: name -> the whole config of the stage, in order.

    Args:
      config: what the stages have in common.
      stages: name, a Python identifier which also names a folder -> what is changed for it, nested like `config`.
    Raises:
      UserError: another name, or a change of a key that `config` does not have.
    """
    whole, known = {}, _keys(config)
    for name, changes in stages.items():
        if not name.isidentifier():
            raise UserError(f"the stage name {name!r} must be letters, digits and _, and begin with a letter")
        changes = ConfigDict(changes)
        for key in _keys(changes):
            if key not in known:
                raise UserError(
                    f"unknown config key config.stages.{name}.{key}; {nearest(key, known, 'config.')}"
                )
        whole[name] = ConfigDict(config.to_dict())
        with whole[name].ignore_type():
            whole[name].update(changes.to_dict())
    config = ConfigDict(config.to_dict())
    # By default a ConfigDict sorts its keys.
    config.stages = ConfigDict(whole, sort_keys=False)
    return config


def _split(override: str, known: Sequence[str]) -> tuple[str, str]:
    """Splits --config.KEY=VALUE into KEY and VALUE. Raises UserError unless KEY is one of those known."""
    match = re.fullmatch(r"--config\.([A-Za-z0-9_.]+)=(.*)", override, re.DOTALL)
    if not match:
        raise UserError(f"unknown argument {override!r}; a config's keys are changed with --config.key=value")
    if match[1] not in known:
        raise UserError(f"unknown config key config.{match[1]}; {_meant(match[1], known)}")
    return match[1], match[2]


def _meant(name: str, known: Sequence[str]) -> str:
    """Says which keys a short name may stand for: those that end so, or whose words begin so ("lr")."""
    last = {key: key.rpartition(".")[2] for key in known if not key.startswith("stages.")}
    same = [key for key, word in last.items() if f".{key}".endswith(f".{name}")]
    initials = [key for key, word in last.items() if "".join(part[:1] for part in word.split("_")) == name]
    part = [key for key, word in last.items() if name in word.split("_")]
    for keys in (same, initials, part):
        if 0 < len(keys) <= _MOST_MEANT:
            return f"did you mean {' or '.join(f'config.{key}' for key in keys)}?"
    return nearest(name, known, "config.")


def _value(text: str, kind: type) -> Any:
    """Reads the value of a key that has a value of type `kind` in the file.

    Two fields of dataclasses have more than one type: lengths are numbers of steps or text like "10%", and sample.cfg
    and sample.tau are one number or one for each scale. `from_dict` refuses either elsewhere.

    Raises:
      ValueError, KeyError: it is no such value.
    """
    if kind is bool:
        return _BOOLEANS[text.lower()]
    if kind is int and (match := DURATION.fullmatch(text)) and match[2]:
        return text
    if kind is float and "," in text:
        return tuple(float(part) for part in text.strip("()").split(",") if part.strip())
    if kind in (int, float, str):
        return kind(text)
    return TupleParser().parse(text)


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """Lists every key as "section.key", without the sections themselves."""
    keys = []
    for key in config:
        value = config.get_ref(key).get()
        keys += _keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [f"{prefix}{key}"]
    return keys


def from_dict(cls: type[T], values: Any, section: str) -> T:
    """Makes a config dataclass from a section of a config file, strict about names and types.

    Args:
      cls: the dataclass.
      values: the section, a mapping or a ConfigDict; lists become tuples. Missing keys keep the dataclass's defaults.
      section: its name, for the error.
    Raises:
      UserError: see `checked_values`; or values that do not go together.
    """
    return cls(**checked_values(cls, values, section))


def checked_values(cls: type, values: Any, section: str) -> dict[str, Any]:
    """Returns the values of a section once each of them has been checked alone; arguments as in `from_dict`.

    Raises:
      UserError: a key that does not exist (the nearest one is named) or one without a default that is not there, a
        value of another type, or one that the field may not hold.
    """
    if not isinstance(values, Mapping | ConfigDict):
        raise UserError(f"{section} is {values!r}; it must be a section, with the keys of {cls.__name__}")
    hints, given = hints_of(cls), {}
    for key in values:
        if key not in hints:
            raise UserError(
                f"unknown config key {section}.{key}; {nearest(key, sorted(hints), f'{section}.')}"
            )
        value: Any = values[key]
        given[key] = tuple(value) if isinstance(value, list) else value
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{section} lacks the key {field.name}; add it")
    check(cls, given, section)
    return given


def numbers_by_name(text: str, what: str, form: str) -> dict[str, int]:
    """Reads "a=8,b=2" as names with whole numbers of at least 1, in order; "" has none.

    Args:
      what: the text is, for the error.
      form: of each part, for the error, like "AXIS=NUMBER".
    Raises:
      UserError: a part is not of that form, or a name is there twice.
    """
    found: dict[str, int] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, number = part.partition("=")
        if not (name and number.isdecimal() and int(number)):
            raise UserError(f"{what} {text!r}: {part!r} is not {form} with a number of at least 1")
        if name in found:
            raise UserError(f"{what} {text!r} names {name} twice; name each at most once")
        found[name] = int(number)
    return found
