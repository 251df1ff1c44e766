"""`infinity-jax compile`; jax is imported when it runs, after its environment is set."""

import argparse
import dataclasses
import os
import re
from pathlib import Path

from infinity_jax.cli import options
from infinity_jax.cli.command import command
from infinity_jax.config import REMAT
from infinity_jax.errors import UserError
from infinity_jax.scales import parse_aspect_ratio

EXAMPLES = """infinity-jax compile --config configs/t2i.py --size 2.2b --budget 0.06M --topology v5e:16x16 \\
      --mesh fsdp=256 --batch 4096 --json 2.2b.json
  infinity-jax compile --config configs/t2i.py --size 2.2b --budget 1M --aspects 1:1,3:2=0.5,2:3=0.5 \\
      --topology v5p:4x4x8 --mesh fsdp=128 --batch 2048 --microbatches 8 --json 2.2b.json
  infinity-jax compile --config configs/t2i.py --size 125m --budget 0.06M --topology cpu:8 --mesh fsdp=8 \\
      --batch 8 --json 125m.json
  infinity-jax compile --warm configs/pods/v5e_256.py:2b,0.06M --workdir runs/2b --topology v5e:16x16 \\
      --config.data.source=records:shards
  infinity-jax compile --config tokenizer:stage2 --budget 1M --batch 512 --remat block --topology v5e:16x16 \\
      --json tokenizer.json
exit code: 0, or 3 where it does not fit into the devices' memory (the numbers are written all the same)"""
DOES_NOT_FIT = 3
_NEEDED = "give --config and --json (and for a transformer --size and --budget), or --warm and --workdir"
# Each virtual device has threads of its own.
MOST_CPU_DEVICES = 1024
# Lets libtpu describe devices on a machine without any, and two processes do so at once.
LIBTPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--config",
        type=options.text,
        metavar="FILE",
        help="a config file, or one that is packed, like t2i",
    )
    add(
        "--size",
        type=options.text,
        metavar="NAME",
        help="its argument: 125m 361m 940m 2.2b 4.7b 2b 8b; left out where --config names it, like var:d30 or, of a "
        "tokenizer, tokenizer:stage2",
    )
    add(
        "--budget",
        type=options.text,
        metavar="NAME",
        help="the stage of the config: 0.06M 0.25M 1M; of a tokenizer's one resolution, by default each of the config",
    )
    add(
        "--aspects",
        type=_shares,
        default={"1:1": 1.0},
        metavar="H:W[=SHARE],...",
        help="a mix of aspect ratios and their shares of the batches (default 1 each): memory is that of the largest, "
        "all else the mean; default 1:1",
    )
    add(
        "--topology",
        type=options.text,
        required=True,
        metavar="CHIP:SHAPE",
        help="v4 v5p tpu7x with three axes (v5p:4x4x8), v5e v6e with two (v5e:16x16), or cpu:8",
    )
    add(
        "--slices",
        type=options.count,
        default=1,
        metavar="N",
        help="so many of the topology, with slower links between them over which `data` of the mesh runs; default 1",
    )
    add(
        "--mesh",
        type=options.text,
        metavar="AXIS=N[,...]",
        help="like data=2,fsdp=64,tensor=2; default: the config's, or fsdp over all devices",
    )
    add(
        "--rules",
        type=options.text,
        metavar="NAME",
        help="preset of sharding rules; default: the least that uses the whole mesh, of dp fsdp fsdp_tp fsdp_tp_sp",
    )
    add(
        "--batch",
        type=options.count,
        metavar="N",
        help="pictures over all devices; default: the config's, for the sampler one for each device of data and fsdp",
    )
    add(
        "--microbatches",
        type=options.count,
        metavar="N",
        help="parts of a batch, one after the other; default: the config's",
    )
    add("--remat", choices=REMAT, help="what is computed again in the backward pass; default: the config's")
    add(
        "--sampler",
        action="store_true",
        help="the sampler (with the config's guidance) instead of the train step",
    )
    add(
        "--quick",
        action="store_true",
        help="compile with less optimisation: several times faster, and other memory is planned",
    )
    add(
        "--warm",
        type=options.text,
        metavar="FILE[:ARGUMENT]",
        help="compile what infinity-jax train runs of this config into --workdir, where the run to come finds it: "
        "all aspect ratios, side by side; only --topology, --slices and changes to the config go with it",
    )
    add("--workdir", type=options.output_folder, metavar="DIR", help="with --warm: the run's")
    options.add_json(command, required=False)


@command(
    "compile",
    "compile a train step or sampler for a TPU topology ahead of time: does it fit, how fast could it be",
    EXAMPLES,
    _add_arguments,
    takes_overrides=True,
)
def compile(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Compiles; returns the exit code, 3 where it does not fit into the devices' memory."""
    needed = ("warm", "workdir") if arguments.warm else ("config", "json")
    for name in needed:
        if getattr(arguments, name) is None:
            raise UserError(f"--{name} is missing; {_NEEDED}")
    os.environ.update(LIBTPU)
    # The time that compiling takes is one of the numbers, and there is no device to load a kept program.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if cpu := re.fullmatch(r"cpu:(\d+)", arguments.topology):
        if not 1 <= int(cpu[1]) <= MOST_CPU_DEVICES:
            raise UserError(
                f"--topology {arguments.topology} has {cpu[1]} virtual devices; use cpu:1 to cpu:{MOST_CPU_DEVICES}"
            )
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={cpu[1]}".strip()
    if arguments.warm:
        _refuse_others(arguments)
        return _warm(arguments, overrides)
    if overrides:
        raise UserError(f"{overrides[0]} changes the config of --warm; {_NEEDED}")
    from infinity_jax.tools.planning import compile_ahead

    names = [field.name for field in dataclasses.fields(compile_ahead.Request)]
    request = compile_ahead.Request(**{name: getattr(arguments, name) for name in names})
    return 0 if compile_ahead.main(request, arguments.json) else DOES_NOT_FIT


def _warm(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from infinity_jax import config_files

    config = config_files.load(arguments.warm, overrides, stages=True)
    from infinity_jax.tools.planning import warm

    warm.main(config, Path(arguments.workdir), arguments.topology, arguments.slices)
    return 0


def _refuse_others(arguments: argparse.Namespace) -> None:
    """Raises UserError if something is asked for that a run takes from its config."""
    others = ("config", "size", "budget", "mesh", "rules", "batch", "microbatches", "remat", "json")
    flags = [name for name in ("sampler", "quick") if getattr(arguments, name)]
    given = flags + [name for name in others if getattr(arguments, name) is not None]
    if given:
        raise UserError(f"--{given[0]} does not go with --warm, which takes all from its config; {_NEEDED}")


def _shares(text: str) -> dict[str, float]:
    """Reads --aspects; other than `numbers_by_name` with shares that may be left out, and argparse's error."""
    shares = {}
    for part in text.split(","):
        aspect, _, share = part.partition("=")
        try:
            parse_aspect_ratio(aspect)
            shares[aspect] = float(share or 1)
        except ValueError:
            shares[aspect] = 0.0
        if not 0 < shares[aspect] < float("inf"):
            raise argparse.ArgumentTypeError(
                f"{part!r} is not HEIGHT:WIDTH or HEIGHT:WIDTH=SHARE with a SHARE above 0"
            )
    return shares
