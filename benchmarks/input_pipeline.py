"""Pictures per second of a core from JPEGs to batches, beside a plain loop of Pillow; the share of training that waits.

    python benchmarks/input_pipeline.py [--pictures 96] [--seconds 6] [--steps 40] [--json FILE]

JPEGs of mixed ratios, about 1.5 times as large as is wanted, are prepared into shards and read in buckets at 256, 512
and 1024 pixels; the plain loop opens the same files with Pillow, converts, resizes (Lanczos), crops and copies into an
array. Both take turns. A rate is pictures by the seconds of CPU time of all threads, so a busy machine disturbs it
little. Then the bundled run goes on for some steps (configs/emoji.py from the bundled checkpoint, its data in memory),
and the same from shards of JPEGs, whose pictures and captions are encoded as the run goes on: `data_wait_share` and
`data_wait_share_records` are the shares of a step's time in which the loop waited for its batch.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import pictures as synthetic_pictures  # pyright: ignore[reportMissingImports]

from infinity_jax import config_files, scales
from infinity_jax.data import feeds, pictures
from infinity_jax.data.prepared import writer
from infinity_jax.data.prepared.buckets import BucketOrder
from infinity_jax.data.prepared.record_set import MixedRecords
from infinity_jax.runtime import start_up
from infinity_jax.training import run_log, train_transformer

BUDGETS = {256: "0.06M", 512: "0.25M", 1024: "1M"}
BATCH, ROUNDS = 8, 3


def sizes_of(budget: str) -> dict[str, tuple[int, int]]:
    """(Height, width) in pixels of each ratio at stride 16."""
    return {
        ratio: tuple(16 * n for n in scales.make_schedule(budget, ratio).last)
        for ratio in scales.aspect_ratios()
    }  # pyright: ignore[reportReturnType]


def detailed(number: int, side: int) -> bytes:
    """A JPEG with as much detail as a photograph: some 0.2 bytes a pixel."""
    draw = np.random.default_rng(number)
    smooth = Image.open(io.BytesIO(synthetic_pictures.jpeg(number, side)))
    grain = draw.normal(0, 6, (smooth.height, smooth.width, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)).save(
        out, "JPEG", quality=85
    )
    return out.getvalue()


def write_folder(folder: Path, count: int, side: int) -> list[Path]:
    """`count` JPEGs with captions; their files."""
    folder.mkdir(parents=True)
    files = [folder / f"{i}.jpg" for i in range(count)]
    for i, file in enumerate(files):
        file.write_bytes(detailed(i, side))
    rows = [f'{file.name},"{synthetic_pictures.caption(i)}"' for i, file in enumerate(files)]
    (folder / "captions.csv").write_text("\n".join(["file_name,caption", *rows]) + "\n")
    return files


def plain_loop(files: list[Path], sizes: dict[str, tuple[int, int]]) -> Iterator[int]:
    """What anyone would write: one picture after the other; gives how many it has made."""
    while True:
        for file in files:
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
            height, width = sizes[scales.nearest_aspect_ratio(picture.height, picture.width)]
            scale = max(height / picture.height, width / picture.width)
            size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            np.asarray(picture.crop((left, top, left + width, top + height)))
            yield 1


def our_batches(shards: Path, sizes: dict[str, tuple[int, int]]) -> Iterator[int]:
    """The pipeline; gives the pictures of each batch."""
    records = MixedRecords(f"records:{shards}")

    def transform(ratio, record, _):
        return {"image": pictures.decode(record["image"], *sizes[ratio])}

    order = BucketOrder(records.buckets, BATCH, seed=0)
    for batch in feeds.bucket_batches(records, order, transform, range(BATCH), threads=os.cpu_count() or 1):
        yield len(batch["image"])


def wait_until_idle() -> None:
    """Returns when no thread of this process works any more: the one before still fills its buffers."""
    used = -1.0
    while time.process_time() - used > 0.01:
        used = time.process_time()
        time.sleep(0.2)


def rate(make: Callable[[], Iterator[int]], seconds: float) -> float:
    """Pictures by seconds of CPU time."""
    wait_until_idle()
    stream = make()
    next(stream)
    begun, used, made = time.monotonic(), time.process_time(), 0
    while time.monotonic() - begun < seconds:
        made += next(stream)
    return made / (time.process_time() - used)


def speeds(folder: Path, count: int, seconds: float) -> dict[int, tuple[float, float]]:
    """Size -> (ours, the plain loop's) pictures per second of a core, the medians of rounds."""
    found = {}
    for side, budget in BUDGETS.items():
        sizes, source = sizes_of(budget), folder / str(side)
        files = write_folder(source, count, round(1.5 * side))
        writer.prepare(f"folder:{source}", folder / f"{side}-shards", workers=1)
        makers: list[Callable[[], Iterator[int]]] = [
            lambda side=side, sizes=sizes: our_batches(folder / f"{side}-shards", sizes),
            lambda files=files, sizes=sizes: plain_loop(files, sizes),
        ]
        rates = [[rate(make, seconds / ROUNDS) for make in makers] for _ in range(ROUNDS)]
        found[side] = tuple(np.median(rates, axis=0).tolist())
        ours, plain = found[side]
        print(f"{side:>5} pixels: {ours:7.1f} a second and core, plain loop {plain:7.1f}", flush=True)
    return found


def data_wait(folder: Path, steps: int, *changes: str) -> float:
    """The share of the bundled run's time, past its first lines, in which the loop waited for its batch."""
    changes = ("--config.train.init_from=bundled", f"--config.train.steps={steps}", *changes)
    quiet = ("--config.train.log_every=5", "--config.train.sample_every=0", "--config.train.evaluate_every=0")
    train_transformer.main(config_files.load(str(ROOT / "configs/emoji.py"), (*changes, *quiet)), folder)
    lines = run_log.read_lines(folder / "metrics.jsonl")[2:]
    seconds = np.array([line["seconds_per_step"] for line in lines])
    return float(np.sum(seconds * [line["data_wait_share"] for line in lines]) / seconds.sum())


def main() -> None:
    """Prints the numbers and writes them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=96, help="JPEGs of each size")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each size and loop")
    parser.add_argument("--steps", type=int, default=40, help="of the bundled run")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go as well")
    arguments = parser.parse_args()
    start_up.keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = speeds(folder, arguments.pictures, arguments.seconds)
        bundled = data_wait(folder / "bundled", arguments.steps)
        source = f"--config.data.source=records:{folder / '256-shards'}"
        records = data_wait(folder / "records", arguments.steps, source)
    numbers = {
        "pictures_per_second_per_core": {str(side): round(ours, 1) for side, (ours, _) in found.items()},
        "plain_loop_pictures_per_second_per_core": {
            str(side): round(plain, 1) for side, (_, plain) in found.items()
        },
        "data_wait_share": round(bundled, 4),
        "data_wait_share_records": round(records, 4),
        "cores": os.cpu_count(),
    }
    print(json.dumps(numbers, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main()
