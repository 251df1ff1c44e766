"""XLA's optimised HLO as text, read into computations and instructions."""

import dataclasses
import math
import re

_NAME = re.compile(r"%([\w.\-]+)")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")


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
