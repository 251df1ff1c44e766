"""What the compiler makes of the sampler and the train step for one TPU or GPU: traffic, FLOP, copies and memory.

python benchmarks/compiled_programs.py --device v5e --json v5e.json
PYTHONPATH=$PWD:/path/to/cuda python benchmarks/compiled_programs.py --device h100 --h100-target h100.txtpb

No device is needed and nothing runs: the programs are compiled ahead of time, as `infinity-jax compile` does, and their
optimised text is counted, the body of a loop as often as it runs. With another tree in PYTHONPATH it counts that one's
programs. A preset's depth is cut (`--layers`), so that the state of training fits one chip; with two numbers of layers
both are compiled, and what grows with depth is carried on to the preset's.

v5e, v5p and the other TPUs want libtpu (`pip install 'infinity-jax[tpu]'`). H100 wants the packages
jax-cuda12-plugin and jax-cuda12-pjrt of jax's version (`pip install --no-deps --target FOLDER`, FOLDER in PYTHONPATH)
and a description of the GPU, XLA's GpuTargetConfigProto as text, which XLA on such a machine writes with --xla_dump_to.
There cuBLAS and cuDNN are calls whose insides are chosen on the device: their operands and results are counted, their
work by formula.

For an H100 each of the two programs takes a minute of a core. For a TPU it takes ten and more; with `--quick` one.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from infinity_jax.cli.compile import LIBTPU

os.environ.update(LIBTPU)  # before jax starts

import jax
from jax.experimental import topologies

from infinity_jax import config_files, scales
from infinity_jax.config import TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.runtime import sharding
from infinity_jax.runtime.compiled_step import planned_bytes
from infinity_jax.runtime.mesh import MeshConfig
from infinity_jax.tools.planning import hlo_costs, hlo_text
from infinity_jax.tools.planning.chips import find_target
from infinity_jax.tools.planning.compile_ahead import QUICK
from infinity_jax.tools.planning.lowering import lower_sampler, lower_train_step

SMALLEST_TOPOLOGY = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}  # its tiles are chosen by measuring on the device
PRODUCT = re.compile(r'custom_call_target="__(cublas|cudnn\$conv)')
ATTENTION = re.compile(r'custom_call_target="__cudnn\$fmha\w*?(Backward)?"')
# Kinds of kernels that move data. A fusion is of the first kind that something in it is of.
KINDS = {
    "product": {"dot", "convolution"},
    "concatenate": {"concatenate"},
    "transpose or copy": {"copy", "transpose"},
    "write into an array": {"dynamic-update-slice", "scatter"},
    "reduction": {"reduce", "reduce-window"},
}
# A fusion of nothing but these takes a slice out of an array, as the weights of one layer.
SLICE = {"dynamic-slice", "slice", "gather"}
NO_WORK = {"parameter", "constant", "bitcast", "convert", "reshape", "tuple", "broadcast", "iota"}
INDEX_WORK = {"add", "compare", "select", "clamp", "multiply", "subtract"}


class Traffic(hlo_costs._Walk):
    """Walks a program's text as `infinity-jax compile` does, and notes the traffic of each kernel.

    It reads the parent's private methods, because it has to count trees that have no more than these.

    Attributes:
      kernels: (kind, name without its number, type of the result) -> [how often it runs, bytes].
      kernel_flops: of cuBLAS's and cuDNN's calls, which the parent does not know.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self.kernels: dict[tuple[str, str, str], list[float]] = {}
        self.kernel_flops = 0.0
        self._times: list[int] = []

    def _visit(self, computation: hlo_text.Computation, times: int, fused: bool) -> None:
        self._times.append(times)
        super()._visit(computation, times, fused)
        for instruction in computation.instructions.values():
            if instruction.op == "custom-call":
                self._call(instruction, computation)
        self._times.pop()

    def _traffic(self, instruction: hlo_text.Instruction, computation: hlo_text.Computation) -> float:
        size = super()._traffic(instruction, computation)
        self._note(self._kind(instruction), instruction, size)
        return size

    def _call(self, instruction: hlo_text.Instruction, computation: hlo_text.Computation) -> None:
        types = [computation.instructions[name].type for name in instruction.operands]
        result = re.sub(r"s8\[\d+\]", "", instruction.type)  # without the workspace
        size = float(sum(hlo_text.size_in_bytes(text, True) for text in (result, *types)))
        if hlo_costs._KERNEL in instruction.attributes:
            self._note("Pallas kernel", instruction, hlo_costs._kernel_costs(instruction, computation)[1])
        elif PRODUCT.search(instruction.attributes):
            self._count_call("product", instruction, _call_flops(instruction, result, *types[:2]), size)
        elif fmha := ATTENTION.search(instruction.attributes):
            (B, Q, H, d), K = hlo_text.sizes(types[0]), hlo_text.sizes(types[1])[1]
            self._count_call(
                "cuDNN attention", instruction, 2.0 * B * Q * H * d * K * (5 if fmha[1] else 2), size
            )

    def _count_call(self, kind: str, instruction: hlo_text.Instruction, flops: float, size: float) -> None:
        self._bytes += self._times[-1] * size
        self.kernel_flops += self._times[-1] * flops
        self._note(kind, instruction, size)

    def _note(self, kind: str, instruction: hlo_text.Instruction, size: float) -> None:
        name = re.sub(r"[.\d]*(\.clone|\.remat\d*)*[.\d]*$", "", instruction.name)
        shapes = re.sub(r"\{[^}]*\}", "", instruction.type)
        count = self.kernels.setdefault((kind, name, shapes), [0.0, 0.0])
        count[0] += self._times[-1]
        count[1] += self._times[-1] * size

    def _kind(self, instruction: hlo_text.Instruction) -> str:
        if instruction.op in ("copy-start", "slice-start"):
            return "into or out of fast memory"
        ops = self._operations(instruction)
        if ops & SLICE and not ops - SLICE - NO_WORK - INDEX_WORK:
            return "slice of an array"
        return next((kind for kind, of_kind in KINDS.items() if ops & of_kind), "element-wise")

    def _operations(self, instruction: hlo_text.Instruction) -> set[str]:
        if instruction.op != "fusion":
            return {instruction.op}
        inside = self._module.called(instruction)[0].instructions.values()
        return set().union(*(self._operations(each) for each in inside))


def _call_flops(instruction: hlo_text.Instruction, result: str, left: str, right: str) -> float:
    """Counts the FLOP of a product that a library computes."""
    shape = hlo_text.sizes(result)
    if contracted := re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes):
        axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])]
        count = 2.0
        for size in (*shape, *(hlo_text.sizes(left)[axis] for axis in axes)):
            count *= size
        return count
    sides = hlo_text.sizes(left), hlo_text.sizes(right)
    return hlo_costs._convolution_flops(instruction.attributes, shape, *sides)


def main() -> None:
    """Compiles, prints a table for each program and writes the numbers as JSON."""
    arguments = _arguments()
    jax.config.update("jax_platforms", "cpu")
    device = _device(arguments)
    report = {}
    for program in arguments.programs:
        report[program] = measured(program, arguments, device)
        describe(f"{program} on {arguments.device}", report[program], arguments.top)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({**vars(arguments), **report}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", required=True, choices=[*SMALLEST_TOPOLOGY, "h100"])
    parser.add_argument("--programs", nargs="+", default=["sampler", "train"], choices=["sampler", "train"])
    parser.add_argument("--size", default="2b", help="a preset, whose depth is cut")
    parser.add_argument("--budget", default="0.06M", help="pixels, 0.06M (256x256) to 1M (1024x1024)")
    parser.add_argument("--layers", type=int, nargs="+", default=[2], help="one or two depths to compile")
    parser.add_argument("--batch", type=int, default=1, help="pictures; the sampler draws two rows for each")
    parser.add_argument("--remat", help="of the train step; default: the config's")
    parser.add_argument("--h100-target", metavar="FILE", help="GpuTargetConfigProto of the GPU, as text")
    parser.add_argument(
        "--quick", action="store_true", help="compile with less optimisation, many times faster"
    )
    parser.add_argument("--top", type=int, default=8, help="largest kernels of each kind that are listed")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go as well")
    parser.add_argument("--text", metavar="FOLDER", help="where the programs' texts go")
    return parser.parse_args()


def _device(arguments: argparse.Namespace) -> Any:
    if arguments.device != "h100":
        return find_target(SMALLEST_TOPOLOGY[arguments.device]).devices[0]
    if not arguments.h100_target:
        sys.exit("skipped: h100 needs --h100-target FILE, the GPU's description (see the top of this file)")
    from jax._src.cudnn import fused_attention_stablehlo as fused_attention

    # jax asks the installed cuDNN for its version before it lowers attention; the target's is 9.10.
    fused_attention.check_cudnn_version = lambda: 91000
    target = Path(arguments.h100_target).read_text()
    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology="1x1x1", target_config=target
        )
    except (RuntimeError, NotImplementedError, ValueError) as error:
        sys.exit(f"skipped: h100 needs jax-cuda12-plugin and jax-cuda12-pjrt {jax.__version__} ({error})")
    return found.devices[0]


def measured(program: str, arguments: argparse.Namespace, device: Any) -> dict[str, Any]:
    """Compiles a program at one depth, or at two and carries what it counts on to the preset's depth."""
    values = config_files.load(f"t2i:{arguments.size},{arguments.budget}")
    depth = from_dict(TransformerConfig, values.model, "model").layers
    at = [_compiled(program, arguments, values, device, layers) for layers in arguments.layers]
    if len(at) == 1:
        return at[0]
    few, many = arguments.layers
    step = (depth - few) / (many - few)

    def carried(low: Any, high: Any) -> Any:
        if isinstance(high, dict):
            return {key: carried(low.get(key, 0), value) for key, value in high.items()}
        if isinstance(high, list):
            return [carried(a, b) for a, b in zip(low or [0] * len(high), high, strict=True)]
        return low + (high - low) * step

    return carried(*at)


def _compiled(
    program: str, arguments: argparse.Namespace, values: Any, device: Any, layers: int
) -> dict[str, Any]:
    model = dataclasses.replace(from_dict(TransformerConfig, values.model, "model"), layers=layers)
    if arguments.remat:
        model = dataclasses.replace(model, remat=arguments.remat)
    layout = sharding.layout_of(MeshConfig(), "dp", model, [device])
    schedule = scales.make_schedule(arguments.budget)
    common = (values, arguments.size, model, schedule, arguments.batch)
    if program == "sampler":
        lowered = lower_sampler(*common, layout).lowered
    else:
        lowered = lower_train_step(*common, 1, layout).lowered
    started = time.monotonic()
    options = GPU_OPTIONS if arguments.device == "h100" else {}
    compiled = lowered.compile(options | (QUICK if arguments.quick else {}))
    seconds = time.monotonic() - started
    text = compiled.as_text() or ""
    if arguments.text:
        Path(arguments.text, f"{program}_{arguments.device}_{layers}.txt").write_text(text)
    walk = Traffic(text)
    counted = walk.total()
    return {
        "layers": layers,
        "bytes accessed": counted.memory_bytes,
        "flops": counted.flops + walk.kernel_flops,
        "planned memory": planned_bytes(compiled),
        "compile seconds": seconds,
        "kernels": {" | ".join(key): value for key, value in walk.kernels.items()},
    }


def describe(title: str, numbers: dict[str, Any], top: int) -> None:
    """Prints the totals, then for each kind of kernel how often it runs, its bytes and the largest of it."""
    print(f"== {title}, {numbers['layers']:g} layers (compiled in {numbers['compile seconds']:.0f} s)")
    print(
        f"   {numbers['bytes accessed'] / 1e9:.2f} GB accessed, {numbers['flops'] / 1e12:.3f} TFLOP, "
        f"{numbers['planned memory'] / 2**30:.2f} GiB planned"
    )
    runs, sizes = Counter(), Counter()
    for key, (count, size) in numbers["kernels"].items():
        runs[key.split(" | ")[0]] += count
        sizes[key.split(" | ")[0]] += size
    for kind, size in sizes.most_common():
        print(f"   {kind:>26} {runs[kind]:>8.0f} x {size / 1e9:10.3f} GB")
        of_kind = [item for item in numbers["kernels"].items() if item[0].startswith(kind + " | ")]
        for key, (count, each) in sorted(of_kind, key=lambda item: -item[1][1])[:top]:
            print(f"   {'':>10}{count:>8.0f} x {each / 1e9:10.3f} GB  {key.split(' | ', 1)[1][:90]}")


if __name__ == "__main__":
    main()
