"""A folder of numbers of NSARM's public code: our config of its network, and its converted weights."""

import dataclasses
import functools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from helpers.golden_folder import NSARM_KINDS, GoldenFolder
from infinity_jax.checkpoints import folder as checkpoint_folder
from infinity_jax.config import UpscalerConfig
from infinity_jax.tools.convert.convert import main as convert

# Arguments of tests, and the kinds of files that they stand for.
KINDS = {kind.removeprefix("nsarm_"): kind for kind in NSARM_KINDS.values()}


def upscaler_config(c: dict[str, Any]) -> UpscalerConfig:
    """Our config from the release's names."""
    assert c["mlp_ratio"] == 4 and not c["norm_first"]
    return UpscalerConfig(
        bits=c["input_channels"],
        side=c["input_size"],
        sizes=tuple(c["output_sizes"]),
        widths=tuple(c["hidden_dims"]),
        layers=tuple(c["layers"]),
        heads=tuple(c["heads"]),
        extractor=tuple(c["extractor_widths"]),
        layout="release",
        next_input="area",
    )


@dataclasses.dataclass(frozen=True)
class Upscalers:
    """The network of a folder, converted when it is first asked for."""

    folder: GoldenFolder
    workdir: Path

    @functools.cached_property
    def config(self) -> UpscalerConfig:
        return upscaler_config(
            next(f.info["map_config"] for f in self.folder.files if "map_config" in f.info)
        )

    @functools.cached_property
    def params(self) -> Any:
        config, out = self.workdir / "config.json", self.workdir / "upscaler"
        config.write_text(json.dumps({"upscaler": dataclasses.asdict(self.config)}))
        (weights,) = self.folder.path.glob("*_transformer_fp16.safetensors")
        convert(str(weights), "upscaler", str(config), str(out))
        return checkpoint_folder.read_arrays(out / checkpoint_folder.WEIGHTS["upscaler"])


def to_tokens(map_BssD: Any, layout: str) -> np.ndarray:
    """Lays a map out as the network's tokens: the inverse of `to_map`."""
    map_BssD = np.asarray(map_BssD)
    batch, side, _, bits = map_BssD.shape
    ordered = map_BssD.transpose(0, 3, 1, 2) if layout == "release" else map_BssD
    return ordered.reshape(batch, side * side, bits)


def padded(kernel: np.ndarray, size: int) -> np.ndarray:
    """Puts zeros around a kernel."""
    return np.pad(kernel, (size - len(kernel)) // 2)


def full_size_value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight of the released size, as the folder's recipe derives it from its name."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    r = random.standard_normal(shape, dtype=np.float32)
    if name.endswith("bias"):
        return 0.1 * r
    if len(shape) == 1 or (len(shape) == 3 and name.endswith("weight")):
        return 1 + 0.2 * r
    return r / np.sqrt(np.prod(shape[1:])).astype(np.float32)
