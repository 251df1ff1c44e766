"""Reads pickles that hold nothing but NumPy arrays in dicts, as flax checkpoints of old, and runs nothing of them."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.files.torch_pickle import Name, PickleMachine

_RECONSTRUCT = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
_DTYPES = {kind: np.dtype(f"<{kind}") for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "u2", "u4")}


class _Dtype:
    """A dtype by its name in the pickle; None is one that is not read here."""

    def __init__(self, name: Any) -> None:
        self.dtype = _DTYPES.get(name) if isinstance(name, str) else None


class _Array:
    """An array, empty until its state comes."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None


class _Machine(PickleMachine):
    def _reduce(self, _: Any) -> None:
        asks_for = getattr(self._stack[-2], "asks_for", "")
        if asks_for in _RECONSTRUCT:
            self._stack[-2:] = [_Array()]
        elif asks_for == "numpy.dtype":
            self._stack[-2:] = [_Dtype(self._stack[-1][0])]
        else:
            super()._reduce(None)

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, _Array):
            target.value = _array(*state)
        elif isinstance(target, _Dtype) and state[1] not in ("<", "|"):
            raise ValueError(f"its numbers have the byte order {state[1]!r}")


def _array(_version: Any, shape: Any, dtype: Any, fortran: Any, content: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or dtype.dtype is None:
        raise ValueError("an array in it is not of plain numbers")
    if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.dtype.itemsize:
        raise ValueError(f"an array of shape {shape} has not as many bytes as it needs")
    return np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def read_arrays(path: Path, what: str) -> dict[str, np.ndarray]:
    """Reads a pickle of nested dicts of arrays: "a/b" -> array, read-only.

    Args:
      what: what it should be, for errors.
    Raises:
      UserError: it is missing, damaged, or holds anything but arrays of plain numbers.
    """
    try:
        return dict(_flat("", _Machine().load(io.BytesIO(path.read_bytes()))))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; it should be {what}") from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, EOFError, OverflowError) as error:
        words = str(error) or type(error).__name__
        raise UserError(f"{path} is not {what}: {words[:200]}; fetch it again") from error


def _flat(prefix: str, value: Any) -> list[tuple[str, np.ndarray]]:
    if isinstance(value, _Array) and value.value is not None:
        return [(prefix.removesuffix("/"), value.value)]
    if not isinstance(value, dict):
        kind = value.asks_for if isinstance(value, Name) else type(value).__name__
        raise ValueError(f"{prefix or 'all of it'} is no array but {kind}")
    return [entry for key, inner in value.items() for entry in _flat(f"{prefix}{key}/", inner)]
