"""VAR against Infinity's bitwise model: the bundled pictures by the group of the emoji, at equal size, steps and data.

python experiments/var_against_infinity.py --workdir runs/var_against_infinity --json FILE --sheet FILE

The groups are Unicode's, of the npm package unicode-emoji-json (MIT). VAR draws codes of 512 (9 bits' worth) from a
label; Infinity draws 9 bits a token from the group's name as a caption, with self-correction. Tokenizers differ in
their quantiser alone. The same command again goes on where it was stopped.
"""

import argparse
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from infinity_jax import config_files
from infinity_jax.data import pictures, sources
from infinity_jax.data.emoji_captions import is_variant
from infinity_jax.evaluation import evaluate_tokenizer, generation
from infinity_jax.files import paths, sheets
from infinity_jax.files.npm import NpmPackage, fetch
from infinity_jax.metrics.kid import effnet_kid
from infinity_jax.runtime import start_up
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.training import train_tokenizer, train_transformer

GROUPS = NpmPackage(
    "unicode-emoji-json",
    "0.9.0",
    "HdrQW/7SdbXUsTd8uTATv7LvQJkCSgbAgRCDCtOhQ6xn3EAx+xZHQtRniOXWJK3ywIqPegkNhP4U4EbuFsiQng==",
)
SILENT = ["train.sample_every=0", "train.evaluate_every=0"]
# One loss for both, all scales of every picture, as codes want it.
SHARED = ["model.base_width=64", "loss.quantizer=1.0", "loss.scales=short", "loss.short_scales=10"]
TOKENIZERS = {
    "VAR": ("var_tokenizer:64px", SHARED),
    "Infinity": ("emoji_tokenizer", ["model.bits=9", "loss.scale_drop=0.0", *SHARED]),
}
TRANSFORMERS = {
    "VAR": ("var:64px", ["model.width=128", "text.classes=0"]),
    "Infinity": ("emoji", ["model.width=128", "model.bits=9"]),
}
# Each draws with the best of these, by its KID.
SETTINGS: Mapping[str, list[dict[str, Any]]] = {
    "VAR": [{"cfg": cfg, "top_p": 0.96} for cfg in (1.0, 2.0, 4.0)],
    "Infinity": [{"cfg": cfg, "tau": tau} for cfg in (2.0, 4.0) for tau in (0.5, 1.0)],
}
DRAWN, SHOWN = 450, 12


def main() -> None:
    """Trains and measures what is missing, then prints the table and writes it."""
    arguments = _arguments()
    start_up.keep_freed_memory()
    start_up.log_to_stderr()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    source = f"folder:{_pictures_by_group(arguments.workdir)}"
    report: dict[str, Any] = {"steps": arguments.steps, "tokenizer_steps": arguments.tokenizer_steps}
    for name in TOKENIZERS:
        report[f"{name}, tokenizer"] = _tokenizer(name, source, arguments)
    for seed in range(arguments.seeds):
        for name in TRANSFORMERS:
            report[f"{name}, seed {seed}"] = numbers = _transformer(name, seed, source, arguments)
            print(name, seed, json.dumps(numbers), flush=True)
    print(json.dumps(report, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.sheet:
        _sheet(report, source, arguments)


def _pictures_by_group(workdir: Path) -> Path:
    """Writes the bundled pictures without skin tones into a folder for each group."""
    folder = workdir / "pictures"
    if folder.is_dir():
        return folder
    with tarfile.open(fetch(GROUPS, paths.data_dir() / "npm")) as archive:
        member = archive.extractfile("package/data-by-emoji.json")
        assert member is not None
        group_of = {_code(character): entry["group"] for character, entry in json.load(member).items()}
    writing = workdir / "pictures.part"
    for split in ("train", "validation", "compositions"):
        source = sources.open_source("emoji_captions", split)
        for record in (source[i] for i in range(len(source))):
            group = group_of.get(_code_of_id(record["id"]))
            if group is None or is_variant(record["caption"]):
                continue
            target = writing / group.lower().replace(" & ", " and ") / f"{_code_of_id(record['id'])}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(record["image"])
    writing.rename(folder)
    return folder


def _code(characters: str) -> str:
    return "-".join(f"{ord(character):x}" for character in characters if character != "\ufe0f")


def _code_of_id(identity: str) -> str:
    return "-".join(part for part in identity.lower().split("-") if part != "fe0f")


def _config(file: str, changes: list[str]) -> Any:
    return config_files.load(file, [f"--config.{change}" for change in [*changes, *SILENT]])


def _tokenizer(name: str, source: str, arguments: argparse.Namespace) -> dict[str, Any]:
    file, changes = TOKENIZERS[name]
    workdir = arguments.workdir / f"{name}_tokenizer"
    steps = f"train.steps={arguments.tokenizer_steps}"
    train_tokenizer.main(_config(file, [*changes, steps, f"data.source={source}"]), workdir)
    evaluation = workdir / "evaluation.json"
    if not evaluation.is_file():
        evaluate_tokenizer.main(evaluation, str(workdir))
    numbers = json.loads(evaluation.read_text())
    return {key: numbers[key] for key in ("psnr", "psnr_interval", "kid", "kid_interval")}


def _transformer(name: str, seed: int, source: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains one, and measures it with each of its settings."""
    file, changes = TRANSFORMERS[name]
    workdir = arguments.workdir / f"{name}_{seed}"
    changes = [
        *changes,
        f"data.source={source}",
        f"tokenizer={arguments.workdir / f'{name}_tokenizer'}",
        f"train.steps={arguments.steps}",
        f"train.seed={seed}",
    ]
    train_transformer.main(_config(file, changes), workdir)
    evaluation = workdir / "evaluation.json"
    if not evaluation.is_file():
        evaluation.write_text(json.dumps(_measured(name, seed, source, workdir)))
    return json.loads(evaluation.read_text())


def _measured(name: str, seed: int, source: str, workdir: Path) -> dict[str, Any]:
    pipeline = InfinityPipeline.from_pretrained(workdir)
    side = pipeline.picture_size()[0]
    records = [sources.open_source(source, split) for split in ("train", "validation")]
    rows = [part[i] for part in records for i in range(len(part))]
    groups = np.array([row["caption"] for row in rows])
    real = generation.gallery_features(pictures.decode_squares(rows, side))
    asked = np.random.default_rng(0).choice(groups, DRAWN)
    size = sum(x.size for x in jax.tree.leaves(pipeline.model.params))
    tried = []
    for settings in SETTINGS[name]:
        request = SampleRequest(list(asked), range(seed * DRAWN, (seed + 1) * DRAWN))
        images = pipeline.arrays(request, pipeline.settings.changed(**settings))
        features = generation.features_of(images)
        kid, error = effnet_kid(features, real)
        nearest = [int(np.argmin(np.square(real - own).sum(-1))) for own in features]
        right = float(np.mean(groups[nearest] == asked))
        tried.append({**settings, "kid": kid, "kid_error": error, "right_group": right})
    best = min(tried, key=lambda numbers: numbers["kid"])
    return {**best, "parameters": size, "tried": tried}


def _sheet(report: dict[str, Any], source: str, arguments: argparse.Namespace) -> None:
    """Draws both systems' first seeds beside real pictures of the same groups."""
    train = sources.open_source(source, "train")
    rows = [train[int(i)] for i in np.random.default_rng(1).permutation(len(train))[:SHOWN]]
    captions = [row["caption"] for row in rows]
    drawn = []
    for name in TRANSFORMERS:
        pipeline = InfinityPipeline.from_pretrained(arguments.workdir / f"{name}_0")
        best = {key: report[f"{name}, seed 0"][key] for key in SETTINGS[name][0]}
        drawn.append(
            pipeline.arrays(SampleRequest(captions, range(SHOWN)), pipeline.settings.changed(**best))
        )
    sheets.comparison_sheet(
        [*drawn, pictures.decode_squares(rows, pipeline.picture_size()[0])],
        [*TRANSFORMERS, "a real one of the group"],
        arguments.sheet,
        captions=captions,
        footer=sources.attribution(["emoji_captions"]),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000, help="of each transformer")
    parser.add_argument("--tokenizer-steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
