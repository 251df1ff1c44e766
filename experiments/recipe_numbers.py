"""Sizes of the differences from the release that need no training: docs/recipe.md.

python experiments/recipe_numbers.py --json recipe_numbers.json

Takes the bundled checkpoint and 32 of its training pictures.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.checkpoints import pretrained
from infinity_jax.data import pictures, sources
from infinity_jax.runtime import start_up
from infinity_jax.scales import make_schedule
from infinity_jax.text.encoder import load_text_encoder
from infinity_jax.tokenizer import pyramid
from infinity_jax.tokenizer.bsq import BinaryQuantizer
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.training import correction
from infinity_jax.training.tokenizer_losses import bsq_entropies
from infinity_jax.transformer.transformer import Transformer, init_params

COUNT = 32


def main() -> None:
    """Prints each number, and writes all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    start_up.keep_freed_memory()
    model = pretrained.load_model("bundled")
    source = sources.open_source("emoji_captions", "train")
    records = [source[i] for i in range(COUNT)]
    image = pictures.to_float(pictures.decode_squares(records, model.tokenizer.side))
    # Parameters as arguments: as constants of the program they take the compiler minutes.
    encode = jax.jit(
        lambda params, image: _tokenizer(model).apply({"params": params}, image, method="encode")
    )
    features = encode(model.tokenizer.params, image)
    text, mask = load_text_encoder("minilm", 32, "").encode([record["caption"] for record in records])
    report = {
        "bits that differ where features are rounded to bfloat16": rounded_features(model, features),
        "entropy of the mean bits, all pictures": entropy(model, features, 1),
        "the same of 8 groups of 4 pictures, mean": entropy(model, features, 8),
        **fresh_modulation(model, jnp.asarray(text), jnp.asarray(mask)),
        **operands(model, features, jnp.asarray(text), jnp.asarray(mask)),
    }
    for name, number in report.items():
        print(f"{name}: {number:.4g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _tokenizer(model) -> Any:
    return Tokenizer(model.tokenizer.config)


def _teacher_forcing(model, features):
    schedule, bits = make_schedule(model.tokenizer.scales), model.tokenizer.config.bits
    flips = tuple(jnp.zeros((len(features), h, w, bits), bool) for h, w in schedule.sizes)
    return correction.self_correction(
        features, flips, schedule, BinaryQuantizer(model.tokenizer.config.quantizer)
    )


def rounded_features(model, features) -> float:
    """The share of the labels that another rounding of the features changes."""
    rounded = features.astype(jnp.bfloat16).astype(jnp.float32)
    labels, others = (_teacher_forcing(model, x)[1] for x in (features, rounded))
    return float((labels != others).mean())


def entropy(model, features, groups: int) -> float:
    """The quantiser's entropy of the mean bits at the last scale in nats, taken in equal groups of pictures."""
    schedule = make_schedule(model.tokenizer.scales)
    projected = pyramid.quantise(
        features, schedule, BinaryQuantizer(model.tokenizer.config.quantizer)
    ).measured[-1]
    return float(np.mean([bsq_entropies(part)[1] for part in jnp.split(projected, groups)]))


def fresh_modulation(model, text, mask) -> dict[str, float]:
    """How large what gates and scales the blocks' updates is in an untrained model, root mean square."""
    schedule, config = make_schedule(model.tokenizer.scales), model.config
    params = init_params(config, jax.random.key(0), schedule)
    condition = cast(Any, Transformer(config).apply)(
        {"params": params}, text.astype(jnp.float32), mask, method="text_condition"
    )
    size = jnp.sqrt(jnp.square(condition.adaln_B6C).mean((0, 2)))
    table = jnp.sqrt(jnp.square(params["blocks"]["adaln_table"]).mean((0, 2)))
    return {
        "shared map of a fresh model, gamma rows": float(size[:2].mean()),
        "shared map of a fresh model, scale and shift rows": float(size[2:].mean()),
        "table of a fresh model, gamma rows": float(table[:2].mean()),
        "table of a fresh model, scale and shift rows": float(table[2:].mean()),
        "deviation of a fresh kernel over sqrt(1 / C / 3)": float(
            params["blocks"]["ffn"]["fc1"]["kernel"].std() * (3 * config.width) ** 0.5
        ),
    }


def operands(model, features, text, mask) -> dict[str, float]:
    """What bfloat16 operands change, relative root mean squares against a model with float32 operands throughout."""
    inputs, _ = _teacher_forcing(model, features)
    schedule = make_schedule(model.tokenizer.scales)

    def outputs(dtype: str):
        config = dataclasses.replace(model.config, compute_dtype=dtype)
        apply = cast(Any, Transformer(config).apply)
        variables, x = {"params": model.params}, text.astype(jnp.float32)
        condition = jax.jit(lambda v, x: apply(v, x, mask, method="text_condition"))(variables, x)
        logits = jax.jit(lambda v, x: apply(v, inputs, x, mask, schedule))(variables, x)
        return {"condition vector": condition.vector_BC, "shared map": condition.adaln_B6C,
                "context": condition.context_BTC, "logits": logits}  # fmt: skip

    rounded, exact = outputs("bfloat16"), outputs("float32")
    return {
        f"{name}, bfloat16 against float32": float(
            jnp.linalg.norm(rounded[name] - exact[name]) / jnp.linalg.norm(exact[name])
        )
        for name in exact
    }


if __name__ == "__main__":
    main()
