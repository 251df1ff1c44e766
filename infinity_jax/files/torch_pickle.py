"""Runs the pickle in a torch file on stand-ins, within budgets: nothing is imported or called, no step is dear.

A pickle is a program for a small stack machine that calls what it names. Python's own machine cannot be bounded: two
bytes ask it for a table of 2^31 entries, forty for a key whose hash takes 2^45 steps. This one knows what state dicts
need; every other name and object becomes a `Name` that takes anything and does nothing.
"""

import functools
import io
import pickletools
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from infinity_jax.files.lazy_tensor import TORCH_STORAGES

# The pickle of a checkpoint with 100,000 tensors stays below both; 2 million steps take about 5 seconds.
MOST_STEPS, MOST_BYTES = 2_000_000, 1 << 26
_KEYS = (str, int, float, bytes, type(None))


class Name:
    """Stands for a name that a pickle asks for, or for an object made from it, and does nothing."""

    def __init__(self, asks_for: str, dtype: np.dtype | None = None) -> None:
        self.asks_for, self.dtype = asks_for, dtype


class Storage(NamedTuple):
    """A storage by its key; `kind` has a dtype if it is one that is read here, `length` counts values."""

    key: str
    kind: Any
    length: int


class Tensor(NamedTuple):
    """Where a tensor lies in its storage; offset and strides count values, not bytes."""

    storage: Any
    offset: Any
    shape: tuple
    strides: tuple


_MARK = object()
_TENSOR = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETER = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_DICT = "collections.OrderedDict"


class PickleMachine:
    """The machine for one pickle.

    Attributes:
      storages: those that the pickle has named, by key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self, file: io.BufferedIOBase) -> Any:
        """Runs the pickle that begins at the file's position, and leaves the file behind it.

        Returns:
          its object, of dicts, lists, tuples, numbers, texts, `Tensor`, `Storage` and `Name`.
        Raises:
          ValueError: it is too long, damaged, or uses what no state dict needs. (IndexError, KeyError, TypeError,
            AttributeError too, where it is nonsense.)
        """
        for name, argument in _steps(file):
            if name in self._PUSHES:
                self._stack.append(argument)
            elif name in self._CONSTANTS:
                self._stack.append(self._CONSTANTS[name])
            elif method := getattr(self, f"_{name.lower()}", None):
                method(argument)
            elif name == "STOP":
                return self._stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"its pickle has the step {name}, which no state dict needs")
        raise EOFError("its pickle has no end")

    # What genops has read already.
    _PUSHES: ClassVar = {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *(
            "STRING",
            "BINSTRING",
            "SHORT_BINSTRING",
            "UNICODE",
            "BINUNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE8",
        ),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
    _CONSTANTS: ClassVar = {
        **{"NONE": None, "NEWTRUE": True, "NEWFALSE": False},
        **{"EMPTY_TUPLE": (), "MARK": _MARK, "EMPTY_SET": Name("a set")},
    }

    def _pop_to_mark(self) -> list[Any]:
        stack = self._stack
        start = len(stack) - 1
        while stack[start] is not _MARK:
            if not start:
                raise IndexError("it has no mark")
            start -= 1
        items = stack[start + 1 :]
        del stack[start:]
        return items

    def _pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def _dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    _binget = _long_binget = _get

    def _empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _list(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _frozenset(self, _: Any) -> None:
        self._pop_to_mark()
        self._stack.append(Name("a set"))

    def _tuple_of(self, count: int, _: Any) -> None:
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(items)

    _tuple1 = functools.partialmethod(_tuple_of, 1)
    _tuple2 = functools.partialmethod(_tuple_of, 2)
    _tuple3 = functools.partialmethod(_tuple_of, 3)

    def _dict(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        _fill(self._stack[-1], items)

    def _append(self, _: Any) -> None:
        item = self._stack.pop()
        if isinstance(self._stack[-1], list):
            self._stack[-1].append(item)

    def _appends(self, _: Any) -> None:
        items = self._pop_to_mark()
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def _additems(self, _: Any) -> None:
        self._pop_to_mark()

    def _setitem(self, _: Any) -> None:
        key, value = self._stack[-2:]
        del self._stack[-2:]
        _fill(self._stack[-1], [key, value])

    def _setitems(self, _: Any) -> None:
        items = self._pop_to_mark()
        _fill(self._stack[-1], items)

    # Names, and what is made of them.

    def _global(self, name: str) -> None:
        self._stack.append(_named(name.replace(" ", ".", 1)))

    def _stack_global(self, _: Any) -> None:
        module, name = self._stack[-2:]
        del self._stack[-2:]
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name in it is no text")
        self._stack.append(_named(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        arguments = self._stack.pop()
        self._stack[-1] = _made(self._stack[-1], arguments)

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self._stack.pop()
        self._reduce(None)

    def _inst(self, name: str) -> None:
        self._pop_to_mark()
        self._stack.append(_named(name.replace(" ", ".", 1)))

    def _obj(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark()[0])

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    _build = _pop  # state for an object that has none here

    def _persid(self, _: Any) -> None:
        self._stack.append(Name("an object outside"))

    def _binpersid(self, _: Any) -> None:
        pid = self._stack.pop()
        if pid[0] != "storage":  # ("module", class, its source): the class is what stands for it
            self._stack.append(pid[1])
            return
        _, kind, key, _device, length, *view = pid
        if any(part is not None for part in view):
            self._stack.append(Name("a storage that is a view"))
            return
        if not isinstance(key, str):
            raise TypeError("the key of a storage is no text")
        self.storages[key] = Storage(key, kind, length)
        self._stack.append(self.storages[key])


def _steps(file: io.BufferedIOBase) -> Iterator[tuple[str, Any]]:
    """Yields the name and the argument of each step, within both budgets."""
    steps = pickletools.genops(_Bounded(file))  # pyright: ignore[reportArgumentType]
    for count, (opcode, argument, _) in enumerate(steps):
        if count >= MOST_STEPS:
            raise ValueError(f"its pickle has more than {MOST_STEPS} steps")
        yield opcode.name, argument


class _Bounded:
    """Reads at most `MOST_BYTES` of a file."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file, self._left = file, MOST_BYTES
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        self._take(count)
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._left + 1)
        self._take(len(line))
        return line

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError(f"its pickle is longer than {MOST_BYTES} bytes")


def _named(asks_for: str) -> Name:
    return Name(asks_for, TORCH_STORAGES.get(asks_for.removeprefix("torch.")))


def _made(what: Any, arguments: Any) -> Any:
    """Makes what a call of `what` gives."""
    asks_for = getattr(what, "asks_for", "")
    if asks_for == _DICT:
        made: dict = {}
        for pair in arguments[0] if arguments else ():  # torch before 0.4 gave it a list of pairs
            _fill(made, list(pair))
        return made
    if asks_for in _TENSOR:
        storage, offset, shape, strides, *_ = arguments
        return Tensor(storage, offset, tuple(shape), tuple(strides))
    return arguments[0] if asks_for in _PARAMETER else what


def _fill(target: Any, items: list[Any]) -> None:
    """Sets keys and values, one behind the other; a key that is no plain value is left out, it cannot be asked for."""
    if isinstance(target, dict):
        if len(items) % 2:
            raise ValueError("a key in it has no value")
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((key, value) for key, value in pairs if isinstance(key, _KEYS))


def load(content: bytes) -> Any:
    """Runs a pickle that lies in memory, see `PickleMachine.load`."""
    return PickleMachine().load(io.BytesIO(content))
