"""Memory of the tokenizer's training step by quantiser and bits (paper Table 3), and size of the classifiers (Table 5).

python experiments/quantizer_memory.py --json quantizer_memory.json --plot quantizer_memory.png

The step of configs/emoji_tokenizer.py (64x64 pictures, all scales from 1x1 to 8x8, the feature loss) is compiled with a
narrower network, never run. Counted are the arguments, the outputs that are not arguments overwritten, the temporary
arrays and the code of one device. LFQ's entropy is over all 2^d codes: with 32 and 64 bits it is refused, and "error"
says how many bytes one of its tables would have. Takes a minute or two on two cores.
"""

import os

# Only how fast the machine code is: what XLA plans stays the same, and code that is never run need not be fast.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from infinity_jax import config_files
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.runtime import sharding
from infinity_jax.runtime.compiled_step import planned_bytes
from infinity_jax.runtime.mesh import MeshConfig
from infinity_jax.scales import make_schedule
from infinity_jax.tokenizer.model import Tokenizer, initial_variables
from infinity_jax.training import optim, state, train_tokenizer
from infinity_jax.training.tokenizer_step import TokenizerLossConfig, make_train_step, training_scales
from infinity_jax.transformer.heads import BitHead, IndexHead

BITS = (16, 18, 20, 32, 64)
BATCH = 8
CHANGES = {"base_width": 32, "encoder_blocks": 1, "decoder_blocks": 1}
# GB in the paper, on an accelerator of 80 GB; None is out of memory.
PAPER_TABLE_3 = {"lfq": (37.6, 53.7, None, None, None), "bsq": (32.4,) * 5}
PAPER_TABLE_5 = {"index": ("124M", "2GB"), "bits": ("0.65M", "10MB")}
# Of a float32 parameter in training: itself, its gradient and both moments of AdamW.
TRAINING_BYTES = 16


def step_bytes(quantizer: str, bits: int) -> int:
    """Bytes of one device for the compiled training step; UserError where the quantiser cannot be trained so."""
    config = config_files.load("configs/emoji_tokenizer.py")
    loss = from_dict(TokenizerLossConfig, config.loss, "loss")
    settings = from_dict(optim.OptimConfig, config.optim, "optim")
    model = from_dict(TokenizerConfig, config.model, "model")
    model = dataclasses.replace(model, quantizer=quantizer, bits=bits, **CHANGES)
    schedule = make_schedule(config.data.scales)
    side = schedule.last[0] * model.stride
    scales = {side: training_scales(loss.scales, schedule, loss.scale_drop, loss.short_scales)}
    optimiser = optim.make_optimiser(settings, config.train.steps)
    layout = sharding.layout_of(MeshConfig(), devices=jax.devices()[:1])
    tokenizer = Tokenizer(model)
    new_state, _ = state.new_state(
        lambda: initial_variables(tokenizer, side, 0),
        optimiser,
        settings.ema_decay > 0,
        layout,
    )
    step = make_train_step(
        tokenizer, loss, settings, optimiser, scales, train_tokenizer.feature_loss(loss, model)
    )
    batch = {"image": jax.ShapeDtypeStruct((BATCH, side, side, 3), jnp.uint8)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = jax.jit(step, donate_argnums=0).lower(jax.eval_shape(new_state), batch, key)
    return planned_bytes(lowered.compile())


def quantizer_rows() -> list[dict[str, Any]]:
    """What the JSON file holds: quantizer, bits, and peak_bytes or error."""
    rows = []
    for quantizer in PAPER_TABLE_3:
        for bits, paper in zip(BITS, PAPER_TABLE_3[quantizer], strict=True):
            row: dict[str, Any] = {"quantizer": quantizer, "bits": bits}
            try:
                row["peak_bytes"] = step_bytes(quantizer, bits)
                shown = f"{row['peak_bytes'] / 1e9:10.3f} GB"
            except UserError as error:
                row["error"] = str(error)
                shown = f"{'refused':>10}   "
            of_paper = "OOM" if paper is None else f"{paper} GB"
            print(f"{quantizer:>6} {bits:>5} {shown} {of_paper:>12}", flush=True)
            rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """A plot of the memory against the bits, logarithmic; a cross is what was refused."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    measured = [row["peak_bytes"] / 1e9 for row in rows if "peak_bytes" in row]
    top = 3 * max(measured)
    for quantizer, colour in zip(PAPER_TABLE_3, ("tab:red", "tab:blue"), strict=True):
        own = [row for row in rows if row["quantizer"] == quantizer]
        points = [(row["bits"], row["peak_bytes"] / 1e9) for row in own if "peak_bytes" in row]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=quantizer.upper())
        refused = [row["bits"] for row in own if "error" in row]
        axes.plot(refused, [top] * len(refused), "x", color=colour, markersize=9)
        for bits in refused:
            axes.annotate("refused", (bits, top), (0, -16), textcoords="offset points", ha="center")
    axes.set(xscale="log", yscale="log", xlabel="bits per token", ylabel="GB of one device")
    axes.set_xticks(BITS, [str(bits) for bits in BITS], minor=False)
    axes.minorticks_off()
    axes.set_xlim(14, 80)
    axes.set_title(f"Compiled training step of the tokenizer, {BATCH} pictures of 64x64", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def classifier_parameters(width: int, bits: int) -> dict[str, int]:
    """Weights and biases of the linear map from hidden states to logits, from the modules themselves."""
    counts = {}
    for name, head in (("index", IndexHead), ("bits", BitHead)):
        config = TransformerConfig(width=width, heads=16, bits=bits, head=name)
        x_BLC, vector_BC = jnp.zeros((1, 1, width)), jnp.zeros((1, width))
        variables = jax.eval_shape(head(config).init, jax.random.key(0), x_BLC, vector_BC)
        shapes = nn.meta.unbox(variables)["params"]["logits"]
        counts[name] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return counts


def print_classifiers() -> None:
    """Table 5 at width 2048, the paper's in section 3.3."""
    counts = classifier_parameters(2048, 16)
    print("\nclassifier of 16 bits, width 2048   parameters   bytes in training   paper")
    for name, count in counts.items():
        label = {"index": "conventional (2^16 classes)", "bits": "bitwise (IVC)"}[name]
        print(f"{label:<35} {count:>10,} {count * TRAINING_BYTES / 1e6:>16.1f} MB   {PAPER_TABLE_5[name]}")
    print(f"saved: {100 * (1 - counts['bits'] / counts['index']):.2f}% (paper: 99.95%)")


def main() -> None:
    """Prints both tables, writes the first."""
    parser = argparse.ArgumentParser(
        description="Memory of the tokenizer's training step by quantiser and bits"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="where the table goes")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a PNG of it")
    arguments = parser.parse_args()
    print(f"{'':>6} {'bits':>5} {'compiled':>13} {'paper':>12}")
    rows = quantizer_rows()
    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.plot:
        draw(rows, arguments.plot)
    print_classifiers()


if __name__ == "__main__":
    main()
