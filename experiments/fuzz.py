"""Reads mutated files: none may crash a reader, hang it, fill the memory, or pass with an array that was flipped.

    python experiments/fuzz.py [--files 20000] [--seed 0] [--workers 2] [--only pth,json] [--first 0]

Of each kind as many files are made as --files says, each from a whole one by one to five changes that its number and
the seed decide: bits flipped, bytes cut out, doubled, or taken from another place, lengths set to extremes, the end cut
off, for JSON values and brackets that nobody expects. Worker processes read them. A reader may return what was in the
whole file, or raise UserError with one printable line; all else is counted, and the first of each sort is shown with
its number, which --first and --files 1 read again. Prints a table; exits 1 if there is a crash, a hang above 10 s, more
than 1 GiB above the process's start, a traceback, or a flipped array. About 20 minutes on 2 cores.
"""

import argparse
import collections
import dataclasses
import io
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np

HANG_SECONDS, MOST_BYTES = 10.0, 1 << 30
TOKENS = [
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b'""',
    b"[]",
    b"{}",
    b"9" * 400,
    b'"\\ud800"',
    b"true",
    b"[" * 3000,
    b"0.5",
]
EXTREMES = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    (1 << 63) - 1,
    (1 << 64) - 1,
]
# What a reader returns: arrays by name, or for files without arrays anything that can be compared.
Arrays = dict[str, np.ndarray]


def mutated(whole: bytes, draw: random.Random, text: bool) -> bytes:
    """Makes one to five changes; at least one byte differs."""
    content = bytearray(whole)
    while content == whole:
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            _change(content, draw, text)
    return bytes(content)


def _change(content: bytearray, draw: random.Random, text: bool) -> None:
    place = draw.randrange(len(content) + 1)
    length = min(draw.choice((1, 2, 4, 16, 200)), len(content) - place)
    match draw.randrange(8):
        case 0 | 1 if place < len(content):
            content[place] ^= 1 << draw.randrange(8)
        case 2 if place < len(content):
            content[place] = draw.randrange(256)
        case 3:
            del content[place : place + length]
        case 4:
            other = draw.randrange(len(content) + 1)
            content[place : place + length] = content[other : other + length]
        case 5 if text:
            content[place : place + draw.choice((0, 1, 4))] = draw.choice(TOKENS)
        case 5:
            width = draw.choice((1, 2, 4, 8))
            number = draw.choice(EXTREMES) & (1 << 8 * width) - 1
            content[place : place + width] = number.to_bytes(width, draw.choice(("little", "big")))
        case 6 if draw.random() < 0.3:
            del content[place:]
        case 7:
            content[place:place] = content[place : place + length] * draw.choice((1, 50))


class Kind:
    """A kind of file: whole ones, and how each is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wholes: list[tuple[str, bytes]] = []
        self.text = False

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def read(self, path: Path) -> Any:
        raise NotImplementedError

    def flipped(self, before: Any, after: Any, name: str) -> bool:
        """Whether an array came back under its name, with its shape, and other values."""
        return any(
            name in after and after[name].shape == x.shape and after[name].tobytes() != x.tobytes()
            for name, x in before.items()
        )


def _state() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    state = {f"block.{i}.weight": draw.normal(size=(16, 24)).astype(np.float32) for i in range(6)}
    return {**state, "bias": draw.normal(size=7).astype(np.float16), "steps": np.arange(5)}


class Pth(Kind):
    """Files of torch.save: zip, which has a checksum of each entry, and the older layout, which has none."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from helpers import published, torch_pickles  # pyright: ignore[reportMissingImports]

        published.write_pth(folder / "a.pth", _state())
        values = {"0": np.arange(24, dtype=np.float32), "1": np.ones(6, np.float16)}
        nested = {"trainer": {"gpt_fsdp": {
            "a": torch_pickles.tensor("FloatStorage", "0", 24, 0, (4, 6), (6, 1)),
            "b": torch_pickles.tensor("HalfStorage", "1", 6, 2, (3,), (1,)),
        }, "step": 3}}  # fmt: skip
        torch_pickles.zip_file(folder / "b.pth", nested, values)
        torch_pickles.legacy_file(folder / "legacy.pth", nested, values)
        self.wholes = [(n, (folder / n).read_bytes()) for n in ("a.pth", "b.pth", "a.pth", "legacy.pth")]

    def read(self, path: Path) -> Arrays:
        from infinity_jax.files.lazy_tensor import Entry
        from infinity_jax.files.tensors import open_tensors

        Entry.check_file.cache_clear()  # it takes for granted that a file does not change within a process
        return {name: tensor.read() for name, tensor in open_tensors(path, "transformer").items()}

    def flipped(self, before: Any, after: Any, name: str) -> bool:
        return name != "legacy.pth" and super().flipped(before, after, name)


class Safetensors(Kind):
    """Weights as we write them: of an exported checkpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from infinity_jax.checkpoints import folder as disk
        from infinity_jax.files import checksums

        for dtype in ("float32", "bfloat16", "float16"):
            params = {"block": {str(i): x for i, x in enumerate(_state().values()) if x.ndim == 2}}
            with checksums.replacing(folder, f"{dtype}.safetensors"):
                disk.write_arrays(folder / f"{dtype}.safetensors", params, dtype)
            self.wholes.append((f"{dtype}.safetensors", (folder / f"{dtype}.safetensors").read_bytes()))

    def read(self, path: Path) -> Arrays:
        from flax.traverse_util import flatten_dict

        from infinity_jax.checkpoints import folder as disk

        return {name: np.asarray(x) for name, x in flatten_dict(disk.read_arrays(path), sep="/").items()}


class Json(Kind):
    """JSON of others: configs of checkpoints and of T5, an index of shards, a tokenizer, lines of captions."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from helpers import published  # pyright: ignore[reportMissingImports]

        self.text = True
        config = (ROOT / "infinity_jax/checkpoints/emoji/config.json").read_bytes()
        t5 = {"model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
              "vocab_size": 100, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
              "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6}  # fmt: skip
        published.save_safetensors(_state(), folder / "s.safetensors")
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(_state(), "s.safetensors")}
        vocabulary = json.loads((ROOT / "infinity_jax/text/assets/minilm_tokenizer.json").read_text())
        vocabulary["model"]["vocab"] = dict(list(vocabulary["model"]["vocab"].items())[:110])
        rows = [{"image_path": f"{i}.png", "long_caption": "a red heart", "score": i / 3} for i in range(4)]
        self.wholes = [
            ("config.json", config),
            ("t5.json", json.dumps(t5).encode()),
            ("a.safetensors.index.json", json.dumps(index).encode()),
            ("tokenizer.json", json.dumps(vocabulary).encode()),
            ("rows.jsonl", "\n".join(map(json.dumps, rows)).encode()),
            ("prompts.json", json.dumps([{"prompt": "a cat"}] * 3).encode()),
        ]
        for number in range(4):
            (folder / f"{number}.png").write_bytes(b"")

    def read(self, path: Path) -> Any:
        from infinity_jax.checkpoints import folder as disk
        from infinity_jax.config import TokenizerConfig, TransformerConfig
        from infinity_jax.config_files import from_dict
        from infinity_jax.data.originals import json_lines
        from infinity_jax.evaluation.benchmarks import prompt_files
        from infinity_jax.files.tensors import open_tensors
        from infinity_jax.text import t5_encoder

        match path.name:
            case "config.json":
                values = disk.read_config(path.parent)
                if "tokenizer" not in values or "transformer" not in values:
                    return repr(values)
                made = [
                    from_dict(TokenizerConfig, values["tokenizer"], "tokenizer"),
                    from_dict(TransformerConfig, values["transformer"], "transformer"),
                ]
                return repr(made)
            case "t5.json":
                return repr(t5_encoder.read_config(path))
            case "tokenizer.json":
                tokenizer = t5_encoder.read_tokenizer(path)
                return tokenizer.encode("a red heart").ids
            case "rows.jsonl":
                return repr([list(part.rows()) for part in json_lines.find_parts(path)])
            case "prompts.json":
                return repr(list(prompt_files.entries(path)))
        return repr({name: tensor.shape for name, tensor in open_tensors(path, "t5").items()})

    def flipped(self, before: Any, after: Any, name: str) -> bool:
        return False


class Pictures(Kind):
    """Encoded pictures. A pixel that changes is not found in formats without checksums: JPEG, WebP, GIF, BMP, TIFF."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from PIL import Image

        draw = np.random.default_rng(0)
        smooth = Image.fromarray(draw.integers(0, 256, (5, 7, 3), np.uint8)).resize((70, 50))
        alpha, palette = smooth.convert("RGBA"), smooth.quantize(32)
        alpha.putalpha(100)
        frames = dict(save_all=True, append_images=[palette.rotate(90), palette.rotate(180)])
        for name, image, options in (
            ("a.png", smooth, {}), ("b.png", alpha, {}), ("c.png", palette, dict(transparency=1)),
            ("d.png", smooth.convert("I;16"), {}), ("a.jpeg", smooth, {}), ("b.jpeg", smooth, dict(progressive=True)),
            ("c.jpeg", smooth.convert("CMYK"), {}), ("a.webp", smooth, {}), ("b.webp", alpha, dict(lossless=True)),
            ("a.gif", palette, frames), ("a.bmp", smooth, {}), ("a.tiff", smooth, dict(compression="tiff_lzw")),
            ("b.tiff", alpha, dict(compression="tiff_deflate")), ("c.tiff", smooth, dict(compression="jpeg")),
        ):  # fmt: skip
            out = io.BytesIO()
            image.save(out, name.split(".")[1], **options)
            self.wholes.append((name, out.getvalue()))

    def read(self, path: Path) -> Arrays:
        from infinity_jax.data import pictures
        from infinity_jax.files import pictures as picture_files

        content = picture_files.read(path)
        size = pictures.check(content)
        decoded = np.asarray(pictures.decode_rgb(content))
        assert decoded.shape[:2] == size, f"check says {size}, decoded are {decoded.shape}"
        return {"pixels": decoded}

    def flipped(self, before: Any, after: Any, name: str) -> bool:
        return False


class Checkpoints(Kind):
    """A run's checkpoint: one of its files is changed, or all of it is read after a file was emptied or removed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from helpers import toy_run  # pyright: ignore[reportMissingImports]

        from infinity_jax.checkpoints.run import Checkpointer

        self.state = toy_run.fresh_state()
        self.whole = folder / "whole"
        writer = Checkpointer(self.whole / "checkpoints")
        for step in (1, 2):
            data = {"seed": 0, "next_step": step, "examples": 8 * step}
            writer.save(step, dataclasses.replace(self.state, step=np.int32(step)), data, toy_run.CONFIG)
            writer.wait()
        writer.close()
        newest = self.whole / "checkpoints" / "2"
        files = [file for file in sorted(newest.rglob("*")) if file.is_file() and file.stat().st_size]
        self.wholes = [(str(file.relative_to(self.whole)), file.read_bytes()) for file in files]

    def write(self, name: str, content: bytes) -> Path:
        place = self.folder / "mutated"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.whole, place)
        (place / name).write_bytes(content)
        return place

    def read(self, path: Path) -> Arrays:
        import jax

        from infinity_jax.checkpoints.run import Checkpointer

        reader = Checkpointer(path / "checkpoints", read_only=True)
        try:
            state, data = reader.restore(jax.eval_shape(lambda: self.state), 2)
            reader.config()
        finally:
            reader.close()
        leaves = jax.tree_util.tree_leaves_with_path(state)
        arrays = {jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves}
        return {**arrays, "data": np.asarray([data["seed"], data["next_step"], data["examples"]])}


KINDS: dict[str, Callable[[Path], Kind]] = {
    "pth": Pth,
    "safetensors": Safetensors,
    "json": Json,
    "pictures": Pictures,
    "checkpoints": Checkpoints,
}


def outcome(kind: Kind, number: int, seed: int, whole: dict[str, Any], name_of: str) -> tuple[str, str]:
    """Reads one mutated file; how that ended, and more about it."""
    from infinity_jax.errors import UserError, printable

    draw = random.Random(f"{seed} {name_of} {number}")
    name, content = draw.choice(kind.wholes)
    path = kind.write(name, mutated(content, draw, kind.text))
    try:
        read = kind.read(path)
    except UserError as error:
        said = printable(str(error))  # as the command line does
        good = said.replace("\n", " ").isprintable() and len(said) < 2100
        return ("refused", "") if good else ("bad message", f"{name}: {said[:300]!r}")
    except OSError as error:
        # The command line explains those that name a file.
        return ("refused", "") if error.filename else ("traceback", f"{name}: {error!r}"[:300])
    except MemoryError:
        return "memory", name
    except BaseException as error:
        return "traceback", f"{name}: {type(error).__name__}: {str(error)[:200]!r}"
    if name not in whole:
        whole[name] = kind.read(kind.write(name, content))
        kind.write(name, mutated(content, draw, kind.text))
    if isinstance(read, dict):
        same = read.keys() == whole[name].keys() and all(
            read[n].shape == x.shape and read[n].tobytes() == x.tobytes() for n, x in whole[name].items()
        )
        if not same and kind.flipped(whole[name], read, name):
            return "flipped array", name
        return ("identical" if same else "other, as its format has no checksum"), name
    return ("identical" if read == whole[name] else "other, as its format has no checksum"), name


def worker(connection: Any, name: str, seed: int, numbers: range) -> None:
    """Reads files one after the other: ("begin", number), then ("end", number, outcome, more, bytes)."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)
    here = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=here) as folder:
        kind = KINDS[name](Path(folder))
        whole = {file: kind.read(kind.write(file, content)) for file, content in kind.wholes}
        start = _memory("VmRSS")
        limit = _memory("VmSize") + (4 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in numbers:
            connection.send(("begin", number))
            Path("/proc/self/clear_refs").write_text("5")
            how, more = outcome(kind, number, seed, whole, name)
            took = max(0, _memory("VmHWM") - start)
            if took > MOST_BYTES:
                how, more = "memory", f"{more} {took >> 20} MiB"
            connection.send(("end", number, how, more, took))


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise ValueError(name)


def rounds(name: str, seed: int, numbers: range) -> Iterator[tuple[int, str, str, int, float]]:
    """Has all numbers read, by a new process after each crash or hang and every 2,000 files."""
    context = multiprocessing.get_context("spawn")
    first = numbers.start
    while first < numbers.stop:
        part = range(first, min(numbers.stop, first + 2000))
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, name, seed, part), daemon=True)
        process.start()
        theirs.close()
        busy, began = None, time.monotonic()
        while first < part.stop:
            patience = 120.0 if busy is None else HANG_SECONDS + 1
            if not ours.poll(patience):
                process.kill()
                yield first, "hang", "", 0, time.monotonic() - began
                first += 1
                break
            try:
                message = ours.recv()
            except EOFError:
                process.join()
                if busy is None:
                    raise SystemExit(f"a worker for {name} ended before it had read a file") from None
                yield first, "crash", f"exit code {process.exitcode}", 0, 0.0
                first += 1
                break
            if message[0] == "begin":
                busy, began = message[1], time.monotonic()
                continue
            took = time.monotonic() - began
            how = "hang" if took > HANG_SECONDS else message[2]
            yield message[1], how, message[3], message[4], took
            first = message[1] + 1
        process.kill()
        process.join()


def share(
    arguments: tuple[str, int, range],
) -> tuple[str, collections.Counter, dict[str, tuple[int, str]], int, float]:
    """Runs one share of the files of a kind; counts, the first number of each sort, the most bytes and seconds."""
    name, seed, numbers = arguments
    counts: collections.Counter = collections.Counter()
    examples: dict[str, tuple[int, str]] = {}
    most, longest = 0, 0.0
    for number, how, more, took, seconds in rounds(name, seed, numbers):
        counts[how] += 1
        sort = (
            f"{how}: {':'.join(more.split(':')[:2])}" if how in ("traceback", "bad message", "crash") else how
        )
        examples.setdefault(sort, (number, more))
        most, longest = max(most, took), max(longest, seconds)
    return name, counts, examples, most, longest


COLUMNS = ("refused", "identical", "other, as its format has no checksum", "flipped array", "traceback",
           "bad message", "crash", "hang", "memory")  # fmt: skip
GOOD = COLUMNS[:3]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default=",".join(KINDS))
    arguments = parser.parse_args()
    begin, bad = time.monotonic(), 0
    last = arguments.first + arguments.files
    edges = [arguments.first + arguments.files * i // arguments.workers for i in range(arguments.workers)] + [
        last
    ]
    print(
        "| kind | " + " | ".join(COLUMNS) + " | most memory | longest |\n" + "|---" * (len(COLUMNS) + 3) + "|"
    )
    notes = []
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(arguments.workers) as threads:
        for name in arguments.only.split(","):
            shares = [(name, arguments.seed, range(*edge)) for edge in itertools.pairwise(edges)]
            total: collections.Counter = collections.Counter()
            most, longest, examples = 0, 0.0, {}
            for _, counts, found, bytes_of, seconds in threads.map(share, shares):
                total += counts
                examples = found | examples
                most, longest = max(most, bytes_of), max(longest, seconds)
            cells = [f"{total[column]:,}" for column in COLUMNS]
            print(f"| {name} | " + " | ".join(cells) + f" | {most >> 20} MiB | {longest:.2f} s |", flush=True)
            bad += sum(total[column] for column in COLUMNS if column not in GOOD)
            notes += [
                f"{name} {number}: {sort.split(':')[0]}: {more}"
                for sort, (number, more) in examples.items()
                if sort.split(":")[0] not in GOOD
            ]
    print(f"\nseed {arguments.seed}, {time.monotonic() - begin:.0f} s")
    print("\n".join(notes[:60]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
