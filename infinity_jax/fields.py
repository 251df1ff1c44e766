"""What a config's field may hold, said beside the field and checked in one place wherever a config is made.

    layers: Annotated[int, Range(1, 1000)] = 12

`Checked` refuses other values in a Python constructor; `check` does so for a config file, for `--config.KEY=VALUE` and
for config.json, where types are not checked by anyone else. The reference names the same limits (`docs/generated.py`).
"""

import dataclasses
import functools
import math
import numbers
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from infinity_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Range:
    """Which numbers a field may hold, or how many elements a tuple may have; never NaN, and never infinity.

    Attributes:
      at_least, at_most: the smallest and the largest.
      above, below: as these, themselves left out.
    """

    at_least: int | float | None = None
    at_most: int | float | None = None
    above: int | float | None = None
    below: int | float | None = None

    def holds(self, value: Any) -> bool:
        """Tells whether a number is within."""
        return (
            not (isinstance(value, float) and not math.isfinite(value))  # an int may be too large for a float
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low, high = "", ""
        if self.at_least is not None:
            alone = self.at_most is self.below is None
            low = f"{'of at least' if alone else 'from'} {_short(self.at_least)}"
        elif self.above is not None:
            low = f"above {_short(self.above)}"
        if self.at_most is not None:
            high = f"{'up ' if self.at_least is None else ''}to {_short(self.at_most)}"
        elif self.below is not None:
            high = f"{'to ' if low else ''}below {_short(self.below)}"
        return " ".join(filter(None, (low, high)))


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The texts that a field may hold.

    Attributes:
      names: all of them; "" among them is for none.
    """

    names: Sequence[str]

    def __str__(self) -> str:
        return "one of " + ", ".join(name or '""' for name in self.names)


@dataclasses.dataclass(frozen=True)
class Unlimited:
    """Says that a field may hold any value of its type, and why: who checks it.

    Attributes:
      what: the value is, like "a path".
    """

    what: str

    def __str__(self) -> str:
        return self.what


MOST = 2**31 - 1  # what counts on a device, an int32, can hold
Count = Annotated[int, Range(1, MOST)]
WholeNumber = Annotated[int, Range(0, MOST)]
Seed = WholeNumber  # smaller than what a key takes, as pictures are numbered from it on
Positive = Annotated[float, Range(above=0, at_most=1e9)]
Weight = Annotated[float, Range(0, 1e9)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, below=1)]
FilePath = Annotated[str, Unlimited("a path")]


class Checked:
    """Base of config dataclasses, which checks every field as an instance is made; UserError names the field."""

    def __post_init__(self) -> None:
        """Checks the fields; a class with checks of its own calls this first."""
        check(type(self), vars(self))


def check(cls: type, values: Mapping[str, Any], section: str = "") -> None:
    """Raises UserError unless each of some fields of a config dataclass may hold its value.

    Args:
      cls: the dataclass.
      values: of some of its fields, by name.
      section: of a config file, for the error: "train" names "train.steps".
    """
    hints, prefix = hints_of(cls), f"{section}." if section else ""
    for name, value in values.items():
        if problem := _problem(value, hints[name]):
            raise UserError(problem.format(name=f"{prefix}{name}"))


@functools.cache
def hints_of(cls: type) -> Mapping[str, Any]:
    """Returns the annotation of each field, with its limits."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def limits_of(hint: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Lists the plain types in an annotation, each with its limits: [] where nothing is said of it."""
    if get_origin(hint) is Annotated:
        inner, *limits = get_args(hint)
        if get_origin(inner) is None:
            yield inner, limits
        else:
            yield from limits_of(inner)
    elif get_args(hint):
        yield from (pair for inner in get_args(hint) if inner is not Ellipsis for pair in limits_of(inner))
    else:
        yield hint, []


def described(hint: Any) -> str:
    """Describes what a field may hold, for the reference and for errors: "a whole number from 1 to 8"."""
    if _is_union(hint):
        return ", or ".join(described(one) for one in get_args(hint))
    inner, limits = _split(hint)
    if get_origin(inner) is tuple:
        each = f"several with commas between, each {described(get_args(inner)[0])}"
        return "; ".join([each, *(f"their number {limit}" for limit in limits)])
    for limit in limits:
        if not isinstance(limit, Range):
            return str(limit)
    word = _WORDS.get(inner, "any value" if inner is Any else f"a {getattr(inner, '__name__', inner)}")
    return " ".join([word, *filter(None, map(str, limits))])


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _problem(value: Any, hint: Any) -> str:
    """Says why a field cannot hold a value, with "{name}" for the field; "" if it can."""
    if _is_union(hint):
        problems = [_problem(value, one) for one in get_args(hint)]
        return "" if "" in problems else _refusal(value, hint)
    inner, limits = _split(hint)
    if not _is_of(value, inner):
        return _refusal(value, hint)
    if get_origin(inner) is tuple:
        each = get_args(inner)[0]
        if any(_problem(element, each) for element in value):
            return _refusal(value, hint)
        return "" if all(limit.holds(len(value)) for limit in limits) else _refusal(value, hint)
    for limit in limits:
        if isinstance(limit, OneOf) and value not in limit.names:
            known = ", ".join(name for name in limit.names if name)
            return "unknown {name} " + _literal(f"{value!r}; use one of {known}")
        if isinstance(limit, Range) and not limit.holds(value):
            return _refusal(value, hint)
    if isinstance(value, str) and "\0" in value:
        return _refusal(value, "text without NUL")
    return ""


def _refusal(value: Any, hint: Any) -> str:
    seen = repr(value)
    seen = seen if len(seen) <= 80 else f"{seen[:77]}..."
    return "{name} is " + _literal(f"{seen}; it must be {hint if isinstance(hint, str) else described(hint)}")


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _is_of(value: Any, kind: Any) -> bool:
    """Tells whether a value is of a type; a whole number is also a float, a truth value no number."""
    if kind is Any:
        return True
    if get_origin(kind) is tuple:
        return isinstance(value, tuple)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, get_origin(kind) or kind)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _split(hint: Any) -> tuple[Any, Sequence[Any]]:
    """Splits an annotation into its type and its limits."""
    if get_origin(hint) is Annotated:
        inner, *limits = get_args(hint)
        return inner, limits
    return hint, ()


def _short(number: int | float) -> str:
    if number in (2**31 - 1, 2**32 - 1):
        return f"2^{int(number).bit_length()} - 1"
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
