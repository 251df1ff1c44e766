"""Time of the tokenizer's decoder, of a whole picture too, in turns with another checkout: pairs of one run.

python benchmarks/decoder.py --side 256 --against ../before --json decoder.json

Weights and codes are drawn. Each tree is a process of its own, and they are called in turns. `plain` is `decode` as
both trees have it, in the tokenizer's own float32; `default` is what sampling takes, in a tree that does not know it
`plain`.
"""

import argparse
import functools
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()


def main() -> None:
    """Prints medians and ratios, and writes all durations as JSON."""
    arguments = _arguments()
    if arguments.worker:
        return _work(arguments)
    trees = {"this": HERE.parents[1]} | ({"other": arguments.against} if arguments.against else {})
    workers = {name: _start(Path(tree), arguments) for name, tree in trees.items()}
    durations: dict[str, list[float]] = {}
    for _ in range(arguments.repeats):
        for name, worker in workers.items():
            for form in ("plain", "default", *(["whole picture"] if arguments.whole else [])):
                durations.setdefault(f"{name} {form}", []).append(_ask(worker, form))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    report = {
        "side": arguments.side,
        "medians": {name: statistics.median(values) for name, values in durations.items()},
        "durations": durations,
    }
    print(json.dumps({"side": arguments.side, **report["medians"]}, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--side", type=int, default=256, help="pixels; 256, 512 or 1024")
    parser.add_argument("--against", metavar="FOLDER", help="another checkout")
    parser.add_argument("--whole", action="store_true", help="a picture of the 125m transformer too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="where the durations go")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _start(tree: Path, arguments: argparse.Namespace) -> Any:
    command = [sys.executable, str(HERE), "--worker", "--side", str(arguments.side)]
    command += ["--whole"] if arguments.whole else []
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree
    )


def _ask(worker: Any, form: str) -> float:
    worker.stdin.write(form + "\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def _work(arguments: argparse.Namespace) -> None:
    """Times the form that each line of the input names; the first call of a form compiles and is not counted."""
    import jax

    forms = functools.cache(lambda form: _form(form, arguments.side))
    warm: set[str] = set()
    for line in sys.stdin:
        call = forms(line.strip())
        if line not in warm:
            jax.block_until_ready(call())
            warm.add(line)
        started = time.perf_counter()
        jax.block_until_ready(call())
        print(time.perf_counter() - started, flush=True)


def _form(form: str, side: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    from infinity_jax.config import TokenizerConfig
    from infinity_jax.runtime import start_up
    from infinity_jax.tokenizer.model import Tokenizer

    start_up.keep_freed_memory()
    tokenizer: Any = Tokenizer(TokenizerConfig())
    n = side // tokenizer.config.stride
    codes = jax.random.rademacher(jax.random.key(0), (1, n, n, tokenizer.config.bits), jnp.float32)
    params = jax.jit(lambda: tokenizer.init(jax.random.key(1), codes[:, :1, :1], method="decode"))()
    if form == "whole picture":
        return _whole(params["params"], tokenizer.config, side)
    knows = "operands" in inspect.signature(Tokenizer.decode).parameters
    more = {"operands": "bfloat16"} if form == "default" and knows else {}
    decode = jax.jit(lambda p, x: tokenizer.apply(p, x, method="decode", **more))
    return lambda: decode(params, codes)


def _whole(tokenizer_params: Any, tokenizer: Any, side: int) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    from infinity_jax import presets, scales
    from infinity_jax.sampling import sampler
    from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
    from infinity_jax.transformer.transformer import init_params

    model = presets.preset("125m").transformer
    schedule = scales.make_schedule({256: "0.06M", 512: "0.25M", 1024: "1M"}[side])
    older: dict[str, Any] = (
        {"scan_layers": False} if "scan_layers" in inspect.signature(SamplerConfig).parameters else {}
    )
    config = SamplerConfig(model, tokenizer, schedule, **older)
    params = jax.jit(lambda: sampler.rounded(model, init_params(model, jax.random.key(0), schedule)))()
    ones_BK = jnp.ones((1, schedule.n_scales))
    inputs = SamplerInputs(
        text_BTC=jax.random.normal(jax.random.key(1), (1, 128, model.text_channels)),
        mask_BT=jnp.ones((1, 128), bool),
        seeds_B=jnp.zeros(1, jnp.uint32),
        cfg_BK=4 * ones_BK,
        tau_BK=ones_BK,
        top_p_B=jnp.full(1, 0.97),
    )
    draw = sampler.make_sampler(config)
    return lambda: draw(params, tokenizer_params, inputs)


if __name__ == "__main__":
    main()
