"""How long training waits for captions: the real loop and input path, and devices whose time is simulated.

    python benchmarks/input_overlap.py [--tokens 512] [--batch 32] [--steps 12] [--slower 4] [--json FILE]

Two cores cannot overlap a text encoder with a train step: both want the same cores. So the devices are simulated. Each
program takes its place in one queue, in order, and sleeps there for as long as it would run by formula on 8 x H100: the
train step of 2b at 0.25M with remat on all 8 devices at 40% of the peak in bfloat16, Flan-T5-XL at 40% too. Everything
else is real: shards of JPEGs, decoding to 512 pixels, tokens, the prefetching threads, batches laid out over 8 virtual
devices, the loop and its log. A batch is `--batch` pictures with captions of `--tokens` tokens or a few less, so that
one has all work in proportion of the published 4096; `--slower` makes up for two cores that decode for 8 devices.

It runs with the version before as well (PYTHONPATH), where a thread encoded each batch in float32 on a process's first
device, one text of 512 tokens a call: there it sleeps for what that takes at the H100's full 67 TFLOP/s in float32.
It prints the seconds of encoding a step by formula at the published batch, the seconds of a step beside those of its
own work, and the share that waited, by the log (the version before counts waits that a step hid as well) and of the
devices.
"""

import argparse
import json
import os
import queue
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

import jax
import jax.numpy as jnp
import numpy as np
from helpers import pictures as synthetic  # pyright: ignore[reportMissingImports]

from infinity_jax import presets, scales
from infinity_jax.checkpoints import pretrained
from infinity_jax.data import feeds
from infinity_jax.data.prepared import writer
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.data.prepared.record_set import MixedRecords
from infinity_jax.runtime import sharding
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.text import t5
from infinity_jax.text.encoder import load_text_encoder
from infinity_jax.training import loop, run_log
from infinity_jax.training import state as train_state
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.state import TrainStep

# H100 SXM's data sheet: bfloat16 with tensor cores, float32 without them.
LOW, WHOLE, DEVICES, SHARE, PUBLISHED = 989e12, 67e12, 8, 0.4, 4096
XL = t5.NAMES["xl"]


def text_flops(tokens: int) -> float:
    """Flan-T5-XL's products for one text of so many tokens, with padding."""
    inner = XL.heads * XL.head_size
    return 2 * XL.layers * tokens * (4 * XL.width * inner + 3 * XL.width * XL.ffn_width + 2 * tokens * inner)


def step_flops() -> float:
    """A train step's for one picture, with what remat computes again, see `training/flops.py`."""
    try:
        from infinity_jax.training import flops
    except ImportError:
        from infinity_jax.tools.planning import flops  # pyright: ignore[reportAttributeAccessIssue]
    model, schedule = presets.PRESETS["2b"].transformer, scales.make_schedule("0.25M")
    forward = flops.forward_flops(model, schedule, 512)
    return 3 * forward.total + forward.block_products + forward.self_attention + forward.cross_attention


class Devices:
    """All devices as one queue: what is put there takes its time, one after the other."""

    def __init__(self, slower: float):
        self._slower = slower
        self._queue: queue.SimpleQueue[tuple[float, Future]] = queue.SimpleQueue()
        self.busy = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            seconds, done = self._queue.get()
            time.sleep(seconds * self._slower)
            self.busy += seconds * self._slower
            done.set_result(None)

    def start(self, seconds: float) -> Future:
        done = Future()
        self._queue.put((seconds, done))
        return done


class Later:
    """A number on the simulated devices: whoever reads it waits for them."""

    ndim = 0

    def __init__(self, done: Future):
        self._done = done

    def is_ready(self) -> bool:
        return self._done.done()

    def block_until_ready(self):
        self._done.result()
        return self

    def __array__(self, *args: Any, **kw: Any) -> np.ndarray:
        self._done.result()
        return np.asarray(1.0)


def simulate(devices: Devices, encoder: Any) -> None:
    """Lets step and encoder of this process take the devices' time."""

    class Step:
        def __init__(self, _: Any):
            pass

        def __call__(self, state: Any, batch: dict[str, Any], key: Any) -> Any:
            size = len(batch["text_mask"])
            done = devices.start(size * step_flops() / (DEVICES * LOW * SHARE))
            return state, {"loss": Later(done)}

    loop.CompiledStep = Step  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]

    def encode_before(params: Any, ids: Any, mask: Any) -> np.ndarray:
        devices.start(ids.shape[0] * text_flops(ids.shape[1]) / WHOLE).result()
        return np.zeros((*ids.shape, 8), np.float32)

    encoder._apply = encode_before


def placing(devices: Devices, encoder: Any, layout: sharding.Layout) -> dict[str, Any]:
    """How batches reach the devices: of this version, captions are encoded on all of them."""
    try:
        from infinity_jax.text.on_device import TextOnDevice
    except ImportError:
        return {}
    place = TextOnDevice(encoder, layout)

    def encode(params: Any, texts: dict[str, Any], _: None) -> jax.Array:
        rows, length = texts["text_ids"].shape
        devices.start(rows * text_flops(length) / (DEVICES * LOW * SHARE))
        return jax.device_put(np.zeros((rows, 512, 8), jnp.bfloat16), place.layout.batch(rows))

    place._encode = encode  # pyright: ignore[reportAttributeAccessIssue]
    return {"placed": place}


def shards(folder: Path, tokens: int) -> Path:
    """48 square pictures, each with a caption of nearly as many tokens as are wanted."""
    folder.mkdir()
    rows = []
    for i in range(48):
        (folder / f"{i}.jpg").write_bytes(synthetic.jpeg(i, 640))
        rows.append({"file_name": f"{i}.jpg", "caption": "dog " * (tokens - 2 - i % 8)})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    writer.prepare(f"folder:{folder}", folder / "out", workers=1)
    return folder / "out"


def run(workdir: Path, args: argparse.Namespace) -> dict[str, float]:
    """Trains `steps` steps and returns means of the log's second half."""
    batch, steps = args.batch, args.steps
    source = shards(workdir / "pictures", args.tokens)
    tokenizer, encoder = pretrained.load_tokenizer("bundled"), load_text_encoder("minilm", 512)
    devices, layout = Devices(args.slower), sharding.layout_of(parse_mesh(f"fsdp={DEVICES}"))
    simulate(devices, encoder)
    config = DataConfig(f"records:{source}", "0.25M")
    feed = feeds.RecordFeed(MixedRecords(config.source), None, config, tokenizer, encoder)

    def new_state() -> train_state.TrainState:
        return train_state.TrainState(jnp.zeros((), jnp.int32), {}, (), None)

    where = jax.tree.map(lambda _: layout.replicated, jax.eval_shape(new_state))
    step = TrainStep(lambda state, batch, key: (state, {}), new_state, where, layout)
    train = TrainConfig(steps, batch, log_every=1, checkpoint_every=10**6)
    data = loop.Data(
        lambda first, rows_of: feed.batches(rows_of(batch), batch, 0, first),
        lambda step: step * batch,
        **placing(devices, encoder, layout),
    )
    loop.Checkpointer.save = lambda *args, **kw: None  # pyright: ignore[reportPrivateImportUsage]
    begun = time.perf_counter()
    loop.run(workdir / "run", train, step, data, {}, load_params=lambda path, wanted: wanted)
    lines = run_log.read_lines(workdir / "run" / "metrics.jsonl")[steps // 2 :]
    waits = ("data_wait_share", "text_wait_share", "picture_wait_share")
    return {
        "seconds_per_step": statistics.mean(line["seconds_per_step"] for line in lines),
        "waiting_share": sum(
            line["seconds_per_step"] * sum(line.get(key, 0.0) for key in waits) for line in lines
        )
        / sum(line["seconds_per_step"] for line in lines),
        "seconds_of_the_step_alone": args.slower * batch * step_flops() / (DEVICES * LOW * SHARE),
        "devices_idle_share": 1 - devices.busy / (time.perf_counter() - begun),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--slower", type=float, default=4, help="all simulated times are times this number")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    formula = {
        "seconds_of_step": PUBLISHED * step_flops() / (DEVICES * LOW * SHARE),
        **{
            f"seconds_of_encoding_{tokens}_tokens": {
                "float32, one device, 100% of its peak": PUBLISHED * text_flops(tokens) / WHOLE,
                "bfloat16, 8 devices, 40%": PUBLISHED * text_flops(tokens) / (DEVICES * LOW * SHARE),
            }
            for tokens in (128, 256, 512)
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        result = {"formula": formula, **run(Path(folder), args)}
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
