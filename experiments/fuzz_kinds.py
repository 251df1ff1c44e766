"""Kinds of files that `fuzz.py` mutates: whole files of each, how one is written, and how it is read."""

import dataclasses
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
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
