"""Latency and throughput of sampling with random weights, the share of each scale, and memory.

python benchmarks/sampling.py --size 125m --budget 0.06M --batch 1 --cfg 4 --json sampling.json
python benchmarks/sampling.py --size var-d16 --cfg 2.5

`seconds` is the transformer alone, from text features to the codes of all scales; the tokenizer's decoder is timed
beside it. `utilisation` is what the model needs by formula over that time, as a share of the rate of a large product
in the same run, measured before and after each call.
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import machine

from infinity_jax import presets, scales
from infinity_jax.checkpoints.trained import tokenizer_shapes
from infinity_jax.config import VECTOR
from infinity_jax.runtime import start_up
from infinity_jax.sampling import sampler
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.tools.planning import hlo_costs
from infinity_jax.training import flops
from infinity_jax.transformer.conditions import digits
from infinity_jax.transformer.transformer import init_params


def main() -> None:
    """Prints a table and writes the same as JSON."""
    arguments = _arguments()
    start_up.keep_freed_memory()
    preset = presets.preset(arguments.size)
    budget = arguments.budget or (preset.scales if arguments.size in presets.VAR else "0.06M")
    schedule = scales.make_schedule(budget, arguments.aspect_ratio)
    mixed = "none" if arguments.cfg == 1 else "logits"
    tokenizer = presets.TOKENIZERS[preset.tokenizer]
    top_k = preset.sample.get("top_k", 0)
    config = SamplerConfig(preset.transformer, tokenizer, schedule, mixed, top_k=top_k)
    params = jax.jit(
        lambda: sampler.rounded(config.model, init_params(config.model, jax.random.key(0), schedule))
    )()
    inputs = _inputs(config, arguments)
    report = {
        "size": arguments.size,
        "budget": budget,
        "aspect_ratio": arguments.aspect_ratio,
        "batch": arguments.batch,
        "cfg": arguments.cfg,
        "text_tokens": arguments.text_tokens,
        "dtype": config.model.compute_dtype,
        "device": jax.devices()[0].device_kind,
    }
    report |= _whole(config, params, inputs, arguments.repeats)
    report["share_per_scale"] = _share_per_scale(config, params, inputs, arguments.repeats)
    if not arguments.transformer_only:
        report |= _decoder(config, arguments.batch, arguments.repeats)
    _print(report, schedule)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    known = ", ".join([*presets.PRESETS, *presets.VAR])
    parser.add_argument("--size", default="125m", help=f"one of {known}")
    parser.add_argument(
        "--budget", help="pixels, 0.06M (256x256) to 1M (1024x1024); default 0.06M, or VAR's own"
    )
    parser.add_argument("--aspect-ratio", default="1:1", metavar="H:W")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once")
    parser.add_argument("--cfg", type=float, default=4.0, help="guidance; 1 is none, and half the work")
    parser.add_argument("--text-tokens", type=int, default=128, help="width of the text, padding included")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls; the median counts")
    parser.add_argument("--transformer-only", action="store_true", help="without the decoder")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go as well")
    return parser.parse_args()


def _inputs(config: SamplerConfig, arguments: argparse.Namespace) -> SamplerInputs:
    batch, tokens = arguments.batch, arguments.text_tokens
    text_BTC = jax.random.normal(jax.random.key(1), (batch, tokens, config.model.text_channels))
    if config.model.condition == "class":
        tokens, text_BTC = 1, digits(jnp.arange(batch)[:, None] % config.model.classes)
    ones_BK = jnp.ones((batch, config.schedule.n_scales))
    return SamplerInputs(
        text_BTC=text_BTC,
        mask_BT=jnp.ones((batch, tokens), bool),
        seeds_B=jnp.arange(batch, dtype=jnp.uint32),
        cfg_BK=ones_BK * arguments.cfg,
        tau_BK=ones_BK,
        top_p_B=jnp.full(batch, 0.97),
    )


def _whole(config: SamplerConfig, params: Any, inputs: SamplerInputs, repeats: int) -> dict[str, Any]:
    """The transformer on all scales as one program."""
    started = time.perf_counter()
    quantizer, options = _quantizer(config), sampler.compiler_options()
    draw = jax.jit(lambda *x: sampler.draw(config, x[0], x[1], quantizer), compiler_options=options)
    compiled = draw.lower(params, inputs).compile()
    compile_seconds = time.perf_counter() - started
    durations, rates = [], []
    jax.block_until_ready(compiled(params, inputs))
    dtype = config.model.compute_dtype
    for _ in range(repeats):
        before = machine.matmul_flops_per_second(dtype)
        durations += machine.seconds(lambda: compiled(params, inputs), repeats=1, warm=False)
        rates.append((before + machine.matmul_flops_per_second(dtype)) / 2)
    batch, tokens = inputs.mask_BT.shape
    needed = sampling_flops(config, batch, tokens)
    shares = [needed / seconds / rate for seconds, rate in zip(durations, rates, strict=True)]
    planned: Any = compiled.memory_analysis()
    text: Any = compiled.as_text()
    return {
        "seconds": statistics.median(durations),
        "pictures_per_second": batch / statistics.median(durations),
        "model_flops": needed,
        "compiled_flops_ratio": hlo_costs.costs(text).flops / needed,
        "matmul_flops_per_second": statistics.median(rates),
        "utilisation": statistics.median(shares),
        "compile_seconds": compile_seconds,
        "weights_bytes": sum(x.nbytes for x in jax.tree.leaves(params)),
        "temporaries_bytes": planned.temp_size_in_bytes,
        "cache_bytes": cache_bytes(config, batch),
    }


@functools.cache
def _quantizer(config: SamplerConfig) -> Any:
    """The tokenizer's, with fresh codes if it has such."""
    if config.tokenizer.quantizer != VECTOR:
        return config.quantizer(None)
    shapes = tokenizer_shapes(config.tokenizer)["codebook"]
    codebook = jax.tree.map(lambda x: jax.random.normal(jax.random.key(4), x.shape), shapes)
    return config.quantizer({"codebook": codebook})


def sampling_flops(config: SamplerConfig, batch: int, text_tokens: int) -> int:
    """What the transformer needs for a batch; the learned empty caption's text is worked on once for all pictures."""
    one = flops.forward_flops(config.model, config.schedule, text_tokens)
    pictures = one.total * config.rows - one.text * (config.rows - 1)
    return batch * pictures + one.text * (config.rows - 1)


def cache_bytes(config: SamplerConfig, batch: int) -> int:
    """Keys and values of all scales but the last, in the type of the attention's operands."""
    model, tokens = config.model, config.schedule.offsets[-2]
    numbers = 2 * model.layers * batch * config.rows * tokens * model.width
    return numbers * jnp.dtype(model.compute_dtype).itemsize


def _share_per_scale(
    config: SamplerConfig, params: Any, inputs: SamplerInputs, repeats: int
) -> dict[str, float]:
    """Time of each scale as a program of its own, and of the work on the text, over their sum."""
    prepare = jax.jit(lambda params, inputs: sampler.prepare(config, params, inputs, _quantizer(config)))
    prepared = prepare(params, inputs)
    state = jax.jit(lambda: sampler.empty_state(config, len(inputs.seeds_B)))()
    durations = {"text": min(machine.seconds(lambda: prepare(params, inputs), repeats))}
    for k, size in enumerate(config.schedule.sizes):
        # The state is given up, as in the whole: else the cache would be copied before it is written.
        step: Any = jax.jit(functools.partial(sampler.draw_scale, config, k=k), donate_argnums=3)
        of_scale, states = [], [jax.tree.map(jnp.copy, state) for _ in range(repeats + 1)]
        for given in jax.block_until_ready(states):
            started = time.perf_counter()
            _, state = jax.block_until_ready(step(params, inputs, prepared, given))
            of_scale.append(time.perf_counter() - started)
        durations["x".join(map(str, size))] = min(of_scale)
    total = sum(durations.values())
    return {name: seconds / total for name, seconds in durations.items()}


def _decoder(config: SamplerConfig, batch: int, repeats: int) -> dict[str, float]:
    """The tokenizer's decoder alone."""
    tokenizer = Tokenizer(config.tokenizer)
    size = config.schedule.times(config.tokenizer.patchify).last
    codes = jax.random.normal(jax.random.key(2), (batch, *size, config.tokenizer.bits))
    params = jax.jit(lambda: tokenizer.init(jax.random.key(3), codes, method="decode"))()
    compiled = jax.jit(lambda *x: tokenizer.apply(*x, method="decode")).lower(params, codes).compile()
    planned: Any = compiled.memory_analysis()
    return {
        "decoder_seconds": statistics.median(machine.seconds(lambda: compiled(params, codes), repeats)),
        "decoder_flops": batch * flops.decoder_flops(config.tokenizer, size),
        "decoder_temporaries_bytes": planned.temp_size_in_bytes,
    }


def _print(report: dict[str, Any], schedule: scales.ScaleSchedule) -> None:
    for name, value in report.items():
        if name != "share_per_scale":
            print(f"{name:>26}  {f'{value:.6g}' if isinstance(value, float) else value}")
    for name, share in report["share_per_scale"].items():
        print(f"{name:>26}  {share:6.1%}")


if __name__ == "__main__":
    main()
