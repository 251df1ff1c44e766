"""One train step of the transformer with random weights: its time, its parts, and its memory.

python benchmarks/train_step.py --size 125m --budget 0.06M --batch 2 --json train_step.json

The step goes from the tokenizer's features and the text encoder's to a new state: self-correction, forward and
backward pass, clipping, AdamW and the moving average. `utilisation` is what the model needs by formula over the step's
time, as a share of the rate of a large product in the same run, measured before and after each step. `parts` are
programs of their own, as shares of their sum; the backward pass is the gradient's time less the forward pass's.
"""

import argparse
import dataclasses
import functools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import machine

from infinity_jax import presets, scales
from infinity_jax.runtime import start_up
from infinity_jax.runtime.compiled_step import planned_bytes
from infinity_jax.runtime.mesh import MeshConfig
from infinity_jax.runtime.sharding import layout_of
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.planning import hlo_costs
from infinity_jax.training import flops, transformer_step
from infinity_jax.training import state as train_state
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.state import TrainState, TrainStep
from infinity_jax.training.transformer_step import LossConfig, StepConfig
from infinity_jax.transformer.transformer import Transformer

# For a run of a thousand steps.
PARTS = {"correction": CorrectionConfig(), "loss": LossConfig(), "optim": OptimConfig(), "steps": 1000}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is trained: pictures of one schedule, on one device."""

    config: StepConfig
    schedule: ScaleSchedule

    @functools.cached_property
    def step(self) -> TrainStep:
        """The whole step, as `infinity-jax train` builds it."""
        layout = layout_of(MeshConfig(), devices=jax.devices()[:1])
        return transformer_step.build_step(self.config, [self.schedule], layout)

    def corrected(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """The whole of a step's examples: inputs and bits by self-correction, texts and draws."""
        inputs, bits = transformer_step.corrected_inputs(
            key, 0, batch["features"], self.schedule, self.config.correction, self.config.tokenizer
        )
        draws = transformer_step.draw_examples(key, 0, len(bits), self.config.model, self.config.loss)
        return {
            "inputs": inputs,
            "bits": bits,
            "text": batch["text"],
            "text_mask": batch["text_mask"],
            **draws,
        }

    def apply(self, state: TrainState, grads: Any) -> TrainState:
        """Clipping, AdamW and the moving average."""
        return train_state.apply_gradients(state, grads, self.config.optimiser, self.config.optim.ema_decay)


def main() -> None:
    """Prints a table and writes the same as JSON."""
    arguments = _arguments()
    start_up.keep_freed_memory()
    preset = presets.preset(arguments.size)
    model = dataclasses.replace(preset.transformer, scan_layers=arguments.scan_layers)
    schedule = scales.make_schedule(arguments.budget, arguments.aspect_ratio)
    setup = Setup(StepConfig(model, presets.TOKENIZERS[preset.tokenizer], **PARTS), schedule)
    batch = _batch(setup, arguments.batch, arguments.text_tokens)
    report = {
        **{name: value for name, value in vars(arguments).items() if name != "json"},
        "dtype": model.compute_dtype,
        "device": jax.devices()[0].device_kind,
        **measure(setup, batch, arguments.repeats),
    }
    for name, value in report.items():
        if not isinstance(value, dict):
            print(f"{name:>26}  {f'{value:.6g}' if isinstance(value, float) else value}")
    for name, share in report["parts"].items():
        print(f"{name:>26}  {share:6.1%}  {report['parts_seconds'][name]:.3f} s")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="125m", help=f"one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--budget", default="0.06M", help="pixels, 0.06M (256x256) to 1M (1024x1024)")
    parser.add_argument("--aspect-ratio", default="1:1", metavar="H:W")
    parser.add_argument("--batch", type=int, default=2, help="pictures a step")
    parser.add_argument("--text-tokens", type=int, default=64, help="width of the text, padding included")
    parser.add_argument(
        "--scan-layers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="one compiled block for all layers, or one for each, which takes long to compile",
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed steps; the median counts")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go as well")
    return parser.parse_args()


def _batch(setup: Setup, size: int, text_tokens: int) -> dict[str, jax.Array]:
    """Random features, and captions that fill half or all of the text's width."""
    key_features, key_text = jax.random.split(jax.random.key(1))
    grid = setup.schedule.times(setup.config.tokenizer.patchify).last
    lengths = jnp.where(jnp.arange(size) % 2, text_tokens // 2, text_tokens)
    text = jax.random.normal(key_text, (size, text_tokens, setup.config.model.text_channels))
    return {
        "features": jax.random.normal(key_features, (size, *grid, setup.config.tokenizer.bits)),
        "text": text.astype(jnp.float16),
        "text_mask": jnp.arange(text_tokens) < lengths[:, None],
    }


def measure(setup: Setup, batch: dict[str, jax.Array], repeats: int) -> dict[str, Any]:
    """Times of whole steps and of the parts, in turn, with the rate of a large product around each step."""
    key, state = jax.random.key(2), setup.step.fresh_state()
    started = time.perf_counter()
    step = setup.step.jitted().lower(state, batch, key).compile()
    compile_seconds = time.perf_counter() - started
    parts = _Parts(setup, state, batch, key)
    # The memory that a first and a second step ask for is given back to nobody and serves the rest.
    for _ in range(3):
        state, _ = jax.block_until_ready(step(state, batch, key))
    dtype, durations, rates, seconds = setup.config.model.compute_dtype, [], [], []
    for _ in range(repeats):
        before = machine.matmul_flops_per_second(dtype)
        started = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch, key))
        durations.append(time.perf_counter() - started)
        rates.append((before + machine.matmul_flops_per_second(dtype)) / 2)
        state, one = parts.timed(state)
        seconds.append(one)
    pictures, text_tokens = batch["text_mask"].shape
    needed = pictures * flops.train_flops(setup.config.model, setup.schedule, text_tokens)
    shares = [needed / s / rate for s, rate in zip(durations, rates, strict=True)]
    part_seconds = {name: statistics.median(one[name] for one in seconds) for name in seconds[0]}
    total = sum(part_seconds.values())
    memory: Any = step.memory_analysis()
    return {
        "seconds": statistics.median(durations),
        "best_seconds": min(durations),
        "pictures_per_second": pictures / statistics.median(durations),
        "model_flops": needed,
        "compiled_flops_ratio": hlo_costs.costs(step.as_text() or "").flops / needed,
        "matmul_flops_per_second": statistics.median(rates),
        "float32_matmul_flops_per_second": machine.matmul_flops_per_second("float32"),
        "utilisation": statistics.median(shares),
        "best_utilisation": max(shares),
        "parts": {name: s / total for name, s in part_seconds.items()},
        "parts_seconds": part_seconds,
        "compile_seconds": compile_seconds,
        "planned_bytes": planned_bytes(step),
        "temporaries_bytes": memory.temp_size_in_bytes,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
    }


class _Parts:
    """The parts of a step as programs of their own."""

    def __init__(self, setup: Setup, state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        loss = transformer_step.make_loss(Transformer(setup.config.model), setup.schedule, setup.config.loss)
        self._batch, self._key = batch, key
        self._correct = jax.jit(setup.corrected)
        self._examples = self._correct(batch, key)
        self._forward = jax.jit(loss)
        self._gradient = jax.jit(jax.grad(loss, has_aux=True))
        self._apply = jax.jit(setup.apply, donate_argnums=0)
        jax.block_until_ready((self._forward(state.params, self._examples), self._gradients(state)))

    def _gradients(self, state: TrainState) -> Any:
        return self._gradient(state.params, self._examples)[0]

    def timed(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """The state after the optimiser, and the seconds of each part."""
        corrected, _ = _timed(lambda: self._correct(self._batch, self._key))
        forward, _ = _timed(lambda: self._forward(state.params, self._examples))
        both, grads = _timed(lambda: self._gradients(state))
        applied, state = _timed(lambda: self._apply(state, grads))
        return state, {
            "self-correction": corrected,
            "forward": forward,
            "backward": both - forward,
            "optimiser": applied,
        }


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
