"""Does every size and stage fit on a pod? `python experiments/pods.py POD [SIZE ...] --out DIR`, POD like v5e_256.

Compiles each entry of configs/pods/POD.py with `infinity-jax compile --quick` (a minute or two each, no TPU needed),
keeps its JSON in DIR, where a second call finds it, and prints the table of the README. For GPUs only the memory by
formula is printed.
"""

import argparse
import json
import runpy
import subprocess
import sys
from pathlib import Path

from infinity_jax import config_files, scales
from infinity_jax.cli.compile import DOES_NOT_FIT
from infinity_jax.config import TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.runtime.chips import CHIPS
from infinity_jax.runtime.devices import GIB
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.tools.planning import memory

PODS = Path(__file__).parents[1] / "configs" / "pods"
HEAD = ["size", "stage", "batch", "mesh", "microbatches", "remat", "by formula"]
COMPILED = ["memory compiled", "FLOP ratio", "s/step ≥", "MFU ≤"]


def bytes_by_formula(pod: Path, size: str, stage: str) -> tuple[int, int | None]:
    """The batch, and the memory of one device; None where there is no formula."""
    config = config_files.load(f"{pod}:{size},{stage}")
    model, batch = from_dict(TransformerConfig, config.model, "model"), config.train.batch_size
    parts, mesh = config.train.microbatches, parse_mesh(config.mesh.shape)
    schedule = scales.make_schedule(stage)
    try:
        return batch, memory.train_memory(model, schedule, config.text.max_length, batch, parts, mesh).total
    except UserError:
        return batch, None


def compiled(pod: Path, topology: str, size: str, stage: str, out: Path) -> dict:
    """The report of `infinity-jax compile`, from an earlier call if there was one."""
    file = out / f"{pod.stem}-{size}-{stage}.json"
    if not file.is_file():
        where = ["--config", pod, "--size", size, "--budget", stage, "--topology", topology]
        command = [Path(sys.executable).parent / "infinity-jax", "compile", *where, "--quick", "--json", file]
        code = subprocess.run(command, stdout=sys.stderr).returncode
        if code not in (0, DOES_NOT_FIT):
            sys.exit(code)
    return json.loads(file.read_text())


def compiled_cells(report: dict) -> list[str]:
    peak, available = report["peak_bytes_per_device"], report["device_memory_bytes"]
    if report["compiled_flops"] is None:
        return ["DOES NOT FIT"]
    return [
        f"{peak / GIB:.1f} GiB ({peak / available:.0%})" + ("" if report["fits"] else " DOES NOT FIT"),
        f"{report['compiled_over_model_flops']:.2f}",
        f"{report['estimated_step_seconds']:.2g}",
        f"{report['estimated_mfu']:.0%}",
    ]


def row(cells: list) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pod", choices=sorted(file.stem for file in PODS.glob("*.py")))
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("pods"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pod = PODS / f"{arguments.pod}.py"
    table = runpy.run_path(str(pod))
    topology = table.get("TOPOLOGY")
    available = None if topology else CHIPS[table["CHIP"]].memory
    head = HEAD + (COMPILED if topology else [])
    print(row(head), row(["---"] * len(head)), sep="\n")
    for stage, sizes in table["MESHES"].items():
        for size, (mesh, parts, remat) in sizes.items():
            if arguments.sizes and size not in arguments.sizes:
                continue
            batch, total = bytes_by_formula(pod, size, stage)
            formula = "" if total is None else f"{total / GIB:.1f} GiB"
            if available and total:
                formula += f" ({total / available:.0%})"
            cells = [size, stage, batch, f"`{mesh}`", parts, remat, formula]
            if topology:
                cells += compiled_cells(compiled(pod, topology, size, stage, arguments.out))
            print(row(cells), flush=True)


if __name__ == "__main__":
    main()
