"""What cached token pruning saves, with random weights, and what it costs the bundled model in quality.

python benchmarks/token_pruning.py --size 125m --budget 0.25M --json token_pruning.json
python benchmarks/token_pruning.py --size bundled --quality --pruning fastvar 5:0.5 5:0 --json quality.json

`seconds` is the transformer alone, from text features to the codes of all scales: the shortest of calls in turn with
those of the other settings. `flops_ratio` is what the compiled program does over what it does unpruned, `model_ratio`
the same by formula. With --quality each setting is also measured by `infinity-jax evaluate`: minutes each.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import machine
from sampling import sampling_flops

from infinity_jax import presets, scales
from infinity_jax.checkpoints import pretrained
from infinity_jax.checkpoints.opened import BUNDLED
from infinity_jax.evaluation import evaluate_checkpoint
from infinity_jax.runtime import start_up
from infinity_jax.sampling import sampler, token_pruning
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.tools.planning import hlo_costs
from infinity_jax.transformer.transformer import init_params

QUALITIES = ("retrieval_top1", "retrieval_top5", "retrieval_compositions_top5", "kid", "kid_error")


def main() -> None:
    """Prints a table and writes the same as JSON."""
    arguments = _arguments()
    start_up.keep_freed_memory()
    config = _config(arguments.size, arguments.budget)
    settings = ["none", *arguments.pruning]
    rows = _speed(config, settings, arguments)
    if arguments.quality:
        for setting, row in rows.items():
            row |= _quality(setting, arguments.prompts)
    report = {
        "size": arguments.size,
        "scales": ["x".join(map(str, size)) for size in config.schedule.sizes],
        "batch": arguments.batch,
        "dtype": config.model.compute_dtype,
        "device": jax.devices()[0].device_kind,
        "matmul_flops_per_second": machine.matmul_flops_per_second(config.model.compute_dtype),
        "settings": rows,
    }
    _print(report)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--size", default="125m", help=f"{BUNDLED} or one of {', '.join(presets.PRESETS)}")
    add("--budget", default="0.25M", help="pixels; the bundled model has its own")
    add("--pruning", nargs="*", default=["fastvar"], metavar="NAME", help=token_pruning.FORM)
    add("--batch", type=int, default=1, help="pictures at once")
    add("--text-tokens", type=int, default=128, help="width of the text, padding included")
    add("--repeats", type=int, default=5, help="timed calls of each")
    add("--quality", action="store_true", help="also evaluate the bundled model with each setting")
    add("--prompts", type=int, default=256, help="prompts of --quality")
    add("--json", metavar="FILE", help="where the numbers go as well")
    return parser.parse_args()


def _config(size: str, budget: str) -> SamplerConfig:
    """The sampler without pruning."""
    if size == BUNDLED:
        model = pretrained.load_model(BUNDLED)
        schedule = scales.make_schedule(model.tokenizer.scales)
        return SamplerConfig(model.config, model.tokenizer.config, schedule)
    preset = presets.preset(size)
    return SamplerConfig(
        preset.transformer, presets.TOKENIZERS[preset.tokenizer], scales.make_schedule(budget)
    )


def _speed(
    plain: SamplerConfig, settings: Sequence[str], arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Seconds and FLOP of each setting."""
    params = jax.jit(
        lambda: sampler.rounded(plain.model, init_params(plain.model, jax.random.key(0), plain.schedule))
    )()
    inputs = _inputs(plain, arguments.batch, arguments.text_tokens)
    calls, rows = {}, {}
    for setting in settings:
        pruning = token_pruning.named(setting, plain.schedule, plain.model.layers)
        config = SamplerConfig(plain.model, plain.tokenizer, plain.schedule, pruning=pruning)
        compiled = jax.jit(lambda *x, config=config: sampler.draw(config, *x)).lower(params, inputs).compile()
        calls[setting] = lambda compiled=compiled: compiled(params, inputs)
        rows[setting] = {
            "model_flops": model_flops(config, arguments.batch, arguments.text_tokens),
            "compiled_flops": hlo_costs.costs(compiled.as_text() or "").flops,
            "temporaries_bytes": _temporaries(compiled),
        }
    for setting, seconds in _in_turn(calls, arguments.repeats).items():
        rows[setting]["seconds"] = seconds
    unpruned = rows["none"]
    for row in rows.values():
        row["speedup"] = unpruned["seconds"] / row["seconds"]
        row["flops_ratio"] = row["compiled_flops"] / unpruned["compiled_flops"]
        row["model_ratio"] = row["model_flops"] / unpruned["model_flops"]
    return rows


def _temporaries(compiled: Any) -> int:
    return compiled.memory_analysis().temp_size_in_bytes


def _inputs(config: SamplerConfig, batch: int, tokens: int) -> SamplerInputs:
    ones_BK = jnp.ones((batch, config.schedule.n_scales))
    return SamplerInputs(
        text_BTC=jax.random.normal(jax.random.key(1), (batch, tokens, config.model.text_channels)),
        mask_BT=jnp.ones((batch, tokens), bool),
        seeds_B=jnp.arange(batch, dtype=jnp.uint32),
        cfg_BK=ones_BK * 4,
        tau_BK=ones_BK,
        top_p_B=jnp.full(batch, 0.97),
    )


def model_flops(config: SamplerConfig, batch: int, text_tokens: int) -> int:
    """What the transformer needs for a batch with guidance, by formula."""
    needed = sampling_flops(config, batch, text_tokens)
    if config.pruning is None:
        return needed
    saved = token_pruning.saved_flops(config.pruning, config.model, config.schedule, text_tokens)
    return needed - batch * config.rows * saved


def _in_turn(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The shortest of each call's durations, measured in turn so that a slow minute meets them all."""
    durations = {name: machine.seconds(call, 1) for name, call in calls.items()}
    for _ in range(repeats - 1):
        for name, call in calls.items():
            durations[name] += machine.seconds(call, 1, warm=False)
    return {name: min(each) for name, each in durations.items()}


def _quality(setting: str, prompts: int) -> dict[str, Any]:
    """What `infinity-jax evaluate` says of the bundled model's pictures."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = evaluate_checkpoint.main(
            Path(folder) / "evaluation.json", settings={"pruning": setting}, prompts=prompts
        )
    return {name: numbers[name] for name in QUALITIES}


def _print(report: dict[str, Any]) -> None:
    for name, value in report.items():
        if name != "settings":
            print(f"{name:>26}  {f'{value:.6g}' if isinstance(value, float) else value}")
    names = list(report["settings"]["none"])
    print("\t".join(["pruning", *names]))
    for setting, row in report["settings"].items():
        print("\t".join([setting, *(f"{row[name]:.4g}" for name in names)]))


if __name__ == "__main__":
    main()
