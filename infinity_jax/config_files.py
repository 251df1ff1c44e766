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


def load(path: str, overrides: Sequence[str] = ()) -> Any:
    """The config that a file's `get_config(argument)` gives, with some keys changed.

    Args:
      path: a Python file, with `:argument` after it or not, like "configs/emoji.py:debug".
      overrides: "--config.section.key=value", each one item.
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
    for override in overrides:
        _check_key(override, config)
    return _parse(path, overrides) if overrides else config


def _parse(path: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
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
        near = difflib.get_close_matches(match[1], known, n=1, cutoff=0.4)
        hint = f"did you mean config.{near[0]}?" if near else f"known: {', '.join(known)}"
        raise UserError(f"unknown config key config.{match[1]}; {hint}")


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
