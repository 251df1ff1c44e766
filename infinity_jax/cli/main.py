"""The command line, `infinity-jax COMMAND`. Each command's work is a `main` in the module of its name.

Heavy packages are imported when a command starts, so that --help and mistakes are answered at once.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

from infinity_jax.cli import (
    ablate,
    compile,
    convert,
    exit_codes,
    fid,
    generate,
    options,
    sample,
    scaling,
    sweep,
)
from infinity_jax.cli import evaluate_tokenizer as tokenizer_evaluation
from infinity_jax.config import WEIGHT_DTYPES
from infinity_jax.errors import UserError

# Commands that take --config.KEY=VALUE.
_CONFIGURED = ("train", "train-tokenizer", "prepare", "sweep", "ablate")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 2 is a mistake of the user, 1 a full disk, others the command's own."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not (arguments.command in _CONFIGURED and rest[0].startswith("--config.")):
        parser.error(f"unknown argument {rest[0]!r}; see infinity-jax {arguments.command} --help")
    return exit_codes.of(
        lambda: _run(arguments, rest), several=getattr(arguments, "coordinator", None) is not None
    )


def _run(arguments: argparse.Namespace, rest: list[str]) -> int:
    _prepare_process()
    return arguments.run(arguments, rest) or 0


def _prepare_process() -> None:
    from infinity_jax.runtime import start_up

    # Like Ctrl-C, so that what is half written gets removed; training sets a handler of its own.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    start_up.keep_freed_memory()
    start_up.log_to_stderr()
    start_up.keep_programs()


def _prepare(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from infinity_jax.data.prepared import prepare

    if arguments.features is not None:
        prepare.features(arguments.features, overrides, arguments.source, arguments.out)
    elif overrides:
        raise UserError(f"{overrides[0]} changes a config, and there is none without --features")
    else:
        prepare.main(arguments.source, arguments.out, arguments.workers)


def _train_tokenizer(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from infinity_jax import config_files

    config = config_files.load(arguments.config, overrides)
    from infinity_jax.runtime import distributed
    from infinity_jax.training import train_tokenizer

    distributed.start(options.processes_of(arguments))
    train_tokenizer.main(config, arguments.workdir)


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from infinity_jax import config_files

    config = config_files.load(arguments.config, overrides, stages=True)
    from infinity_jax.runtime import distributed
    from infinity_jax.training import stages, train_transformer

    distributed.start(options.processes_of(arguments))
    (stages if "stages" in config else train_transformer).main(config, arguments.workdir)


def _evaluate(arguments: argparse.Namespace, _: list[str]) -> None:
    from infinity_jax.evaluation import evaluate_checkpoint

    evaluate_checkpoint.main(
        json_file=arguments.json,
        checkpoint=arguments.checkpoint,
        seed=arguments.seed,
        cfg=arguments.cfg,
        tau=arguments.tau,
        pruning=arguments.pruning,
        prompts=arguments.prompts,
        sheet=arguments.sheet,
    )


def _export(arguments: argparse.Namespace, _: list[str]) -> None:
    from infinity_jax.checkpoints import pretrained

    pretrained.main(arguments.checkpoint, arguments.out, arguments.dtype)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="infinity-jax",
        description="Text-to-image by predicting bits, scale by scale: prepare data, train, sample, evaluate.",
        epilog="Prepared data, caches and compiled programs lie in $INFINITY_DATA (default ~/.cache/infinity_jax).",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _add(
        commands,
        "prepare",
        _prepare,
        "prepare a data set",
        "infinity-jax prepare\n"
        "  infinity-jax prepare --source jsonl:splits --out shards --workers 8\n"
        "  infinity-jax train --config configs/t2i.py:debug --config.data.source=records:shards --workdir /tmp/run",
    )
    command.add_argument(
        "--source",
        default="emoji_captions",
        metavar="NAME",
        help="emoji_captions (the bundled pictures, the default) or folder:PATH, "
        "a folder of pictures with captions in a csv or jsonl file; with --out: jsonl:DIR (files "
        "[h_div_w]_[num].jsonl), folder:PATH, tfds:NAME or tar:GLOB",
    )
    command.add_argument(
        "--out",
        metavar="DIR",
        help="write shards by aspect ratio there, and report.json; resumed if it has any",
    )
    command.add_argument(
        "--workers",
        type=options.count,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes, default one for each core",
    )
    command.add_argument(
        "--features",
        metavar="FILE[:ARGUMENT]",
        help="of --source records:DIR: write into --out what the tokenizer and the text encoder of this config make of "
        "the pictures and captions; --config.KEY=VALUE changes one of its keys",
    )

    command = _add(
        commands,
        "train-tokenizer",
        _train_tokenizer,
        "train the picture tokenizer; the same command again resumes",
        "infinity-jax train-tokenizer --config configs/emoji_tokenizer.py --workdir runs/tokenizer\n"
        "  infinity-jax train-tokenizer --config configs/emoji_tokenizer.py:debug --workdir /tmp/debug",
    )
    _add_run_arguments(command)

    command = _add(
        commands,
        "train",
        _train,
        "train the transformer; the same command again resumes",
        "infinity-jax train --config configs/emoji.py --workdir runs/emoji\n"
        "  infinity-jax train --config configs/emoji.py --config.data.source=folder:my_pictures "
        "--config.train.steps=2000 --workdir runs/mine\n"
        "  infinity-jax train --config configs/emoji_progressive.py --workdir runs/stages",
    )
    _add_run_arguments(command)

    _add_module(commands, "sample", sample)
    _add_module(commands, "generate", generate)

    command = _add(
        commands,
        "evaluate",
        _evaluate,
        "measure a checkpoint: loss, reconstruction, KID, retrieval",
        "infinity-jax evaluate --json evaluation.json\n"
        "  infinity-jax evaluate --checkpoint runs/emoji --cfg 3 --sheet sheet.png --json evaluation.json",
    )
    command.add_argument("--json", required=True, metavar="FILE", help="where the numbers are written")
    sample.add_settings(command)
    command.add_argument(
        "--prompts",
        type=options.whole_number,
        default=256,
        metavar="N",
        help="train prompts for retrieval, default 256",
    )
    command.add_argument("--sheet", metavar="FILE", help="a PNG of generated beside real pictures")

    _add_module(commands, "evaluate-tokenizer", tokenizer_evaluation)
    _add_module(commands, "fid", fid)

    command = _add(
        commands,
        "export",
        _export,
        "write a training's averaged weights as one small folder to share",
        "infinity-jax export --checkpoint runs/emoji --out emoji",
    )
    command.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="a training's --workdir or a folder"
    )
    command.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    command.add_argument(
        "--dtype", choices=WEIGHT_DTYPES, default="float16", help="of the weights on disk, default float16"
    )

    command = _add(
        commands,
        "convert",
        convert.run,
        "published PyTorch weights to a checkpoint folder, and back",
        convert.EXAMPLES,
    )
    convert.add_arguments(command)

    _add_module(commands, "compile", compile)
    _add_module(commands, "sweep", sweep)
    _add_module(commands, "scaling", scaling)
    _add_module(commands, "ablate", ablate)
    return parser


def _add_module(commands, name: str, module: ModuleType) -> None:
    """A command whose module has all of it: SUMMARY, EXAMPLES, add_arguments and run."""
    module.add_arguments(_add(commands, name, module.run, module.SUMMARY, module.EXAMPLES))


def _add(commands, name: str, run, summary: str, examples: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=run)
    return command


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARGUMENT]",
        help="a Python config file, like configs/emoji.py:debug",
    )
    command.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="gets checkpoints, metrics.jsonl, sheets; resumed if it has any",
    )
    options.add_processes(command)
    # Shown in the help only: argparse hands these on as unknown arguments, and config_files reads them.
    group = command.add_argument_group("changes to the config")
    group.add_argument(
        "--config.KEY=VALUE",
        dest="_",
        metavar="",
        help="change one key, like --config.train.steps=100; may be repeated",
    )
