"""XLA's optimised HLO as text, read into computations and instructions, and how often its loops run."""

import dataclasses
import math
import re

from absl import logging

_NAME = re.compile(r"%([\w.\-]+)")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_SAME_VALUE = frozenset({"copy", "bitcast", "convert", "reshape", "opt-barrier"})


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
      name, op: of itself.
      type: of its result, as text.
      operands: names.
      operand_text: the same as text; of a constant its value, of a parameter its number.
      attributes: the rest of the line.
    """

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    operand_text: str
    attributes: str


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function: its instructions by name, in their order, and the one with its result."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program: its computations by name, and the one that it begins with."""

    computations: dict[str, Computation]
    entry: Computation

    def called(self, instruction: Instruction) -> list[Computation]:
        """Finds the computations that an instruction runs, but for the condition of a loop."""
        attributes = re.sub(r"condition=%[\w.\-]+", "", instruction.attributes)
        return [self.computations[name] for name in _NAME.findall(attributes) if name in self.computations]


def parse(text: str) -> Module:
    """Reads the text of a compiled program."""
    computations, entry, name, instructions = {}, "", "", {}
    # The metadata of a kernel goes on in lines of its own.
    for line in re.sub(r'\n(?="|\}\}|\},\w)', "", text).splitlines():
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            name, instructions = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0], {}
            entry = name if line.startswith("ENTRY") else entry
        elif name and " = " in line:
            instruction = _instruction(line.strip())
            instructions[instruction.name] = instruction
            if line.lstrip().startswith("ROOT"):
                computations[name] = Computation(name, instructions, instruction)
    return Module(computations, computations[entry])


def _instruction(line: str) -> Instruction:
    name, rest = line.removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end + 1)
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    op = rest[end + 1 : opening].strip()
    return Instruction(
        name.lstrip("%"), rest[:end], op, tuple(_NAME.findall(inside)), inside, rest[closing + 1 :]
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def sizes(type_text: str) -> tuple[int, ...]:
    """Reads the shape from an array's type (the first, if there are several)."""
    first = SHAPE.search(type_text)
    return tuple(int(n) for n in first[2].split(",") if n) if first else ()


def size_in_bytes(type_text: str, main_memory_only: bool = False) -> int:
    """Adds up the bytes of all arrays of a type. Those in a TPU's own fast memory are marked S(n)."""
    total = 0
    for dtype, shape, layout in SHAPE.findall(type_text):
        if main_memory_only and "S(" in layout:
            continue
        number = re.search(r"\d+", dtype)
        bits = 8 if dtype == "pred" else int(number[0]) if number else 0
        total += math.prod(int(n) for n in shape.split(",") if n) * bits // 8
    return total


@dataclasses.dataclass(frozen=True)
class _Counter:
    """Element `element` of a loop's state at the begin of a turn, plus `ahead`."""

    element: int
    ahead: int = 0


_Value = int | _Counter | None  # None: neither is known


def trip_count(loop: Instruction, outer: Computation, module: Module) -> int:
    """Finds how often a loop runs: what the compiler wrote beside it, or what its condition and its step say.

    Where neither says it, that is logged and the loop counts once.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)
    test = module.computations[condition[1]] if condition else outer
    direction = re.search(r"direction=(\w+)", test.root.attributes)
    if test.root.op == "compare" and direction:
        (left, left_step), (right, right_step) = (
            _start_and_step(_value(side, test, module), loop, outer, module) for side in test.root.operands
        )
        gap, speed = right - left, left_step - right_step
        if direction[1] in ("GT", "GE"):
            gap, speed = -gap, -speed
        gap += direction[1] in ("LE", "GE")
        if speed and gap / speed > 0:
            return math.ceil(gap / speed)
    logging.warning("%s: nothing says how often this loop runs, so it is counted once", loop.name)
    return 1


def _start_and_step(side: _Value, loop: Instruction, outer: Computation, module: Module) -> tuple[int, int]:
    """Finds what a side of a loop's condition is at first, and by how much it grows in each turn."""
    if not isinstance(side, _Counter):
        return side or 0, 0
    (body,) = module.called(loop)
    after = _value(body.root.operands[side.element], body, module) if body.root.op == "tuple" else None
    step = after.ahead if isinstance(after, _Counter) and after.element == side.element else 0
    initial = outer.instructions[loop.operands[0]]
    start = _value(initial.operands[side.element], outer, module) if initial.op == "tuple" else 0
    return (start if isinstance(start, int) else 0) + side.ahead, step


def _value(name: str, inside: Computation, module: Module, arguments: tuple[_Value, ...] = ()) -> _Value:
    """Evaluates an instruction of a loop's condition or body, or of what they call with `arguments`."""
    this = inside.instructions[name]
    operands = [inside.instructions[operand] for operand in this.operands if operand in inside.instructions]

    def evaluated() -> list[_Value]:
        return [_value(operand.name, inside, module, arguments) for operand in operands]

    if this.op == "constant":
        return int(this.operand_text) if this.operand_text.lstrip("-").isdecimal() else None
    if this.op == "parameter":
        return arguments[int(this.operand_text)] if arguments else None
    if this.op in _SAME_VALUE:
        return evaluated()[0]
    if this.op == "add":
        return _sum(*evaluated())
    if this.op == "get-tuple-element":
        element = int(this.attributes.split("index=")[1].split(",")[0])
        if operands[0].op == "parameter" and not arguments:
            return _Counter(element)
        if operands[0].op == "tuple":
            return _value(operands[0].operands[element], inside, module, arguments)
    if this.op == "fusion":
        called = module.called(this)[0]
        return _value(called.root.name, called, module, tuple(evaluated()))
    return None


def _sum(a: _Value, b: _Value) -> _Value:
    if isinstance(b, _Counter):
        a, b = b, a
    if a is None or not isinstance(b, int):
        return None
    return a + b if isinstance(a, int) else dataclasses.replace(a, ahead=a.ahead + b)
