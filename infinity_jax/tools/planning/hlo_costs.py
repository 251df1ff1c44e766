"""What one device does in a compiled program: products, memory traffic and collectives, from its optimised HLO text.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs, and scanned layers are a loop.
So the text is walked from its entry instead, and the body of a loop counts as often as it runs.
"""

import dataclasses
import math
import re
from collections import defaultdict

from absl import logging

from infinity_jax.tools.planning.hlo_text import (
    SHAPE,
    Computation,
    Instruction,
    parse,
    size_in_bytes,
    sizes,
    trip_count,
)

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BETWEEN_SLICES = "between-slices"  # of the kinds of `Costs.collectives` the only one on other links
_PRODUCTS = ("dot", "convolution")
# Instructions whose computations run when they do; the `to_apply` of a reduction is no product.
_CALLS = frozenset({"fusion", "call", "while", "conditional", "async", "custom-call"})
_SLICES = frozenset({"dynamic-slice", "slice", "gather"})
# Values that are only named, or whose traffic is counted where their parts are. Collectives have a bound of their own.
_NO_TRAFFIC = re.compile(
    "parameter|constant|send|recv|tuple|get-tuple-element|bitcast|while|call|conditional|after-all|partition-id|replica-id|iota|"
    f"broadcast|custom-call|opt-barrier|.*-done|.*-update|(?:async|call|{'|'.join(COLLECTIVES)})(?:-start)?"
)

_KERNEL = 'custom_call_target="tpu_custom_call"'
_ESTIMATE = re.compile(r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"')


Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Costs:
    """What one device does in one run of the program.

    Attributes:
      flops: of products of matrices and convolutions, and what kernels say of theirs.
      memory_bytes: read from and written to its main memory, an estimate: every operand and result of a kernel once.
      collectives: kind -> bytes that the device sends, with every collective as a ring. A collective over several
        slices is one inside each of them and an exchange of kind `BETWEEN_SLICES`.
    """

    flops: float
    memory_bytes: float
    collectives: dict[str, float]


def costs(text: str) -> Costs:
    """Counts the costs of a program.

    Args:
      text: `compiled.as_text()`, of one device's program.
    """
    return _Walk(text).total()


class _Walk:
    def __init__(self, text: str):
        self._module = parse(text)
        self._flops = self._bytes = 0.0
        self._collectives: dict[str, float] = defaultdict(float)
        self._pieces: dict[tuple[str, str], float] = defaultdict(float)
        self._visited: set[str] = set()

    def total(self) -> Costs:
        self._visit(self._module.entry, 1, False)
        for name in self._module.computations.keys() - self._visited:
            instructions = self._module.computations[name].instructions.values()
            if any(i.op in (*_PRODUCTS, *COLLECTIVES) for i in instructions):
                logging.warning(
                    "%s: nothing says how this part of the program is called; it is not counted", name
                )
        for (kind, _), size in self._pieces.items():
            self._collectives[kind] += size
        return Costs(self._flops, self._bytes, dict(sorted(self._collectives.items())))

    def _visit(self, computation: Computation, times: int, fused: bool) -> None:
        self._visited.add(computation.name)
        for instruction in computation.instructions.values():
            op = instruction.op
            if op in _PRODUCTS:
                self._flops += times * _product_flops(instruction, computation)
            elif op == "custom-call":
                flops, traffic = _kernel_costs(instruction, computation)
                self._flops += times * flops
                self._bytes += times * traffic
            if (kind := op.removesuffix("-start")) in COLLECTIVES:
                self._collective(instruction, computation, kind, times, fused)
            if op == "send" and "is_host_transfer=true" in instruction.attributes:
                sent = size_in_bytes(computation.instructions[instruction.operands[0]].type)
                self._collectives[BETWEEN_SLICES] += times * sent
            if not fused and not _NO_TRAFFIC.fullmatch(op):
                self._bytes += times * self._traffic(instruction, computation)
            if op.removesuffix("-start") in _CALLS:
                repeats = (
                    times * trip_count(instruction, computation, self._module) if op == "while" else times
                )
                for called in self._module.called(instruction):
                    self._visit(called, repeats, fused or op == "fusion")

    def _collective(
        self, instruction: Instruction, computation: Computation, kind: str, times: int, fused: bool
    ) -> None:
        operand = sum(size_in_bytes(computation.instructions[name].type) for name in instruction.operands)
        n = _group_size(instruction.attributes)
        sent = {
            "all-gather": operand * (n - 1),
            "all-reduce": 2 * operand * (n - 1) / n,
            "collective-permute": operand,
        }.get(kind, operand * (n - 1) / n)
        if computation.name.startswith("all-reduce-scatter"):  # each device keeps only its part of the sum
            kind, sent = "reduce-scatter", sent / 2
        # A collective that runs beside kernels appears in each of them as a piece; its channel tells that it is one.
        channel = re.search(r"channel_id=(\d+)", instruction.attributes) if fused else None
        if channel:
            self._pieces[kind, channel[1]] = max(self._pieces[kind, channel[1]], times * sent)
        else:
            self._collectives[kind] += times * sent

    def _traffic(self, instruction: Instruction, computation: Computation) -> float:
        """Counts the bytes of main memory that one kernel reads and writes."""
        op, values = instruction.op, computation.instructions
        operands = [values[name].type for name in instruction.operands if name in values]
        if op == "copy-start":  # from or to the fast memory; its type names both ends
            return float(size_in_bytes(instruction.type, True))
        if op in _SLICES or op == "slice-start":
            *_, taken = (shape[0] for shape in SHAPE.finditer(instruction.type) if shape[2])
            read = size_in_bytes(taken) if size_in_bytes(operands[0], True) else 0
            return float(read + size_in_bytes(taken, True))
        if op == "dynamic-update-slice":
            return 2.0 * size_in_bytes(operands[1])
        if op != "fusion":
            return float(
                size_in_bytes(instruction.type, True)
                + sum(size_in_bytes(operand, True) for operand in operands)
            )
        called = self._module.called(instruction)[0]
        read = sum(min(size_in_bytes(t, True), self._read(called, i)) for i, t in enumerate(operands))
        return float(read + min(size_in_bytes(instruction.type, True), self._written(called)))

    def _read(self, fused: Computation, index: int) -> float:
        """Counts the bytes that a fused computation reads of parameter `index`: less than all where it takes slices."""
        inside = fused.instructions
        parameter = next(i for i in inside.values() if i.op == "parameter" and i.operand_text == str(index))
        aliases, total = {parameter.name}, 0.0
        for user in inside.values():
            if not aliases.intersection(user.operands):
                continue
            if user.op == "bitcast":
                aliases.add(user.name)
            elif user.op in _SLICES:
                total += size_in_bytes(user.type)
            elif user.op == "fusion":
                called = self._module.called(user)[0]
                total += sum(self._read(called, i) for i, o in enumerate(user.operands) if o in aliases)
            # Handed on as it is, sent away, or overwritten in part: not touched.
            elif user.op not in ("tuple", *COLLECTIVES) and not (
                user.op == "dynamic-update-slice" and user.operands[0] in aliases
            ):
                return math.inf
        return total

    def _written(self, fused: Computation) -> float:
        """Counts the bytes that a fused computation writes: of an update in place only what changes."""
        inside, root = fused.instructions, fused.root
        total = 0.0
        for result in [inside[o] for o in root.operands] if root.op == "tuple" else [root]:
            while result.op == "bitcast":
                result = inside[result.operands[0]]
            update = result.op == "dynamic-update-slice"
            if result.op not in ("parameter", "custom-call", *COLLECTIVES):
                total += size_in_bytes(inside[result.operands[1]].type if update else result.type)
        return total


def _kernel_costs(instruction: Instruction, computation: Computation) -> tuple[float, float]:
    """Finds FLOP, and bytes of main memory read and written, of a Pallas kernel for TPUs; (0, 0) for other calls.

    In a compiled program a kernel is an opaque call, with an estimate of its costs or, where it is splash attention,
    with what `attention_splash.py` knows about it.
    """
    if _KERNEL not in instruction.attributes:
        return 0.0, 0.0
    if estimate := _ESTIMATE.search(instruction.attributes):
        return float(estimate[1]), float(estimate[2])
    types = [computation.instructions[name].type for name in instruction.operands]
    once = float(sum(size_in_bytes(text, True) for text in (instruction.type, *types)))
    noted = {name: int(n) for name, n in re.findall(r'\b(splash_\w+)="(\d+)"', instruction.attributes)}
    kind = re.match("splash_mha_(fwd|dkv)", instruction.name)
    if kind and noted:
        return float(noted[f"splash_{kind[1]}_flops"]), once + noted["splash_streamed_bytes"]
    logging.warning(
        "%s: this kernel has no estimate of its costs; only its arrays are counted", instruction.name
    )
    return 0.0, once


def _group_size(attributes: str) -> int:
    """Reads how many devices take part in one collective together."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(counted[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(part.strip().split("=") for part in mesh[1].split(","))
        return math.prod(int(sizes[axis.strip()]) for axis in mesh[2].split(","))
    return 2  # a permutation lists pairs


def _product_flops(instruction: Instruction, computation: Computation) -> float:
    result = sizes(instruction.type)
    left, right = (sizes(computation.instructions[name].type) for name in instruction.operands[:2])
    if instruction.op == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
        return 2.0 * math.prod(result) * math.prod(left[axis] for axis in axes)
    return _convolution_flops(instruction.attributes, result, left, right)


def _convolution_flops(attributes: str, result: Shape, left: Shape, right: Shape) -> float:
    """Counts as XLA does: products with padding or the holes of a dilation are none. A TPU's products are such."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels is not None, attributes
    count = 2.0 * right[labels[2].index("i")] * right[labels[2].index("o")] * left[labels[1].index("b")]
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    for axis in range(len(labels[1]) - 2):

        def field(name: str, default: str, axis: int = axis) -> str:
            return fields[name].split("x")[axis] if name in fields else default

        stride, lhs_dilate, rhs_dilate = (int(field(n, "1")) for n in ("stride", "lhs_dilate", "rhs_dilate"))
        low = int(field("pad", "0_0").split("_")[0])
        size = left[labels[1].index(str(axis))]
        outputs, kernel = result[labels[3].index(str(axis))], right[labels[2].index(str(axis))]
        positions = (o * stride + k * rhs_dilate - low for o in range(outputs) for k in range(kernel))
        count *= sum(p % lhs_dilate == 0 and 0 <= p < (size - 1) * lhs_dilate + 1 for p in positions)
    if groups := re.search(r"batch_group_count=(\d+)", attributes):
        count /= int(groups[1])
    return count
