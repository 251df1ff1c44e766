"""Config files: `PATH[:argument]` with `--config.key=value` changes, as one locked ConfigDict."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from infinity_jax.errors import UserError


def load(path: str, overrides: Sequence[str] = (), stages: bool = False) -> Any:
    """The config that a file's `get_config(argument)` gives, with some keys changed.

    Args:
      path: a Python file, with `:argument` after it or not, like "configs/emoji.py:debug".
      overrides: "--config.section.key=value", each one item. Where the config has stages, such a key is changed in all
        of them, and "--config.stages.NAME.section.key=value" changes it in one, whatever the order.
      stages: whether it may have stages, see `with_stages`.
    Returns:
      a locked ConfigDict: its keys are those of the file, no others. (Any: a type checker cannot know them.)
    Raises:
      UserError: no such file; a key that the file does not have (the nearest is named); a value of another type.
    """
    file = Path(path.split(":", 1)[0])
    if not file.is_file():
        beside = sorted(str(f) for f in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise UserError(f"no config file {file}" + (f"; there are: {', '.join(beside)}" if beside else ""))
    config = _parse(path, ())
    if "stages" in config and not stages:
        raise UserError(
            f"{path} has the stages {', '.join(config.stages)}, which only infinity-jax train goes through; "
            "give a config of one stage, like configs/emoji.py"
        )
    for override in overrides:
        _check_key(override, config)
    return _parse(path, _in_every_stage(overrides, config)) if overrides else config


def _in_every_stage(overrides: Sequence[str], config: Any) -> list[str]:
    """The overrides in the order in which they count, with a copy of those of no stage for each stage."""
    shared, own = [], []
    for override in overrides:
        (own if override.startswith("--config.stages.") else shared).append(override)
    copies = [
        f"--config.stages.{name}.{override.removeprefix('--config.')}"
        for name in config.get("stages", ())
        for override in shared
    ]
    return [*shared, *copies, *own]


def with_stages(config: ml_collections.ConfigDict, stages: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """`config` with a key `stages`, for training stage by stage: name -> the whole config of the stage, in order.

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
        changes = ml_collections.ConfigDict(changes)
        for key in _keys(changes):
            if key not in known:
                raise UserError(f"unknown config key config.stages.{name}.{key}; {_hint(key, known)}")
        whole[name] = ml_collections.ConfigDict(config.to_dict())
        whole[name].update(changes.to_dict())
    config = ml_collections.ConfigDict(config.to_dict())
    # By default a ConfigDict sorts its keys.
    config.stages = ml_collections.ConfigDict(whole, sort_keys=False)
    return config


def _parse(path: str, overrides: Sequence[str]) -> Any:
    argv = ["infinity-jax", f"--config={path}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True, sys_argv=argv)
    try:
        values(argv)
    except (SyntaxError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; it must define get_config(), see configs/emoji.py"
        ) from error
    except (flags.Error, TypeError) as error:
        if own := _user_error_within(error):
            raise own from error
        raise UserError(f"{error}; give a value of the same type as in {path}") from error
    return values.config


def _user_error_within(error: BaseException | None) -> UserError | None:
    """What get_config itself raised: the flags library wraps it, a second time with its traceback as text."""
    innermost = None
    while error is not None:
        innermost = error if isinstance(error, UserError) else innermost
        error = error.__cause__ or error.__context__
    return innermost


def _check_key(override: str, config: ml_collections.ConfigDict) -> None:
    """Raises UserError unless `override` is --config.KEY=VALUE with a KEY of the file."""
    match = re.fullmatch(r"--config\.([A-Za-z0-9_.]+)=(.*)", override, re.DOTALL)
    if not match:
        raise UserError(f"unknown argument {override!r}; a config's keys are changed with --config.key=value")
    known = _keys(config)
    if match[1] not in known:
        raise UserError(f"unknown config key config.{match[1]}; {_hint(match[1], known)}")


def _hint(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"did you mean config.{near[0]}?" if near else f"known: {', '.join(known)}"


def _keys(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    """Every key as "section.key", without the sections themselves."""
    keys = []
    for key in config:
        value = config.get_ref(key).get()
        if isinstance(value, ml_collections.ConfigDict):
            keys += _keys(value, f"{prefix}{key}.")
        else:
            keys.append(f"{prefix}{key}")
    return keys


def load_for_pod(base: Path, argument: str, meshes: Mapping[str, Mapping[str, tuple[str, int, str]]]) -> Any:
    """The config of a size and a stage with a pod's mesh.

    Args:
      base: a config file whose argument is "SIZE,STAGE".
      argument: like "2.2b,0.06M".
      meshes: stage -> size -> (mesh, microbatches, remat).
    Raises:
      UserError: the table has no such stage or size.
    """
    size, _, stage = argument.partition(",")
    if size not in meshes.get(stage, {}):
        known = ", ".join(f"{size},{stage}" for stage, sizes in meshes.items() for size in sizes)
        raise UserError(f"no mesh for {argument!r} on this pod; there are: {known}")
    mesh, microbatches, remat = meshes[stage][size]
    config = load(f"{base}:{argument}").copy_and_resolve_references()
    with config.unlocked():
        config.mesh.shape = mesh
        config.train.sample_every = 0  # the meshes are chosen for the train step; the sampler may not fit
        config.train.microbatches = microbatches
        config.model.remat = remat
    return config
