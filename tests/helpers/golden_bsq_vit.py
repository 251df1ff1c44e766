"""A folder of numbers of BSQ-ViT's public release: our config of a file, and its converted weights."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from helpers.golden_folder import GoldenFile, GoldenFolder
from infinity_jax.checkpoints import folder as checkpoint_folder
from infinity_jax.config import TokenizerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.convert.convert import main as convert
from infinity_jax.training.tokenizer_losses import QuantizerWeights


def tokenizer_config(c: dict[str, Any]) -> TokenizerConfig:
    """Our config from the release's names."""
    base = np.gcd(c["width"], c["dec_width"])
    return TokenizerConfig(
        bits=c["embed_dim"],
        base_width=int(base),
        multipliers=(int(c["width"] // base),),
        decoder_multipliers=(int(c["dec_width"] // base),),
        encoder_blocks=c["layers"],
        decoder_blocks=c["dec_layers"],
        pixel_patch=c["patch_size"],
        architecture="vit",
        side=c["image_size"],
        heads=c["heads"],
        decoder_heads=c["dec_heads"],
        hidden=c["dim_ffn_output"],
        scaled_gradient=True,
        laplace=c["logit_laplace"],
    )


def one_scale(config: TokenizerConfig) -> ScaleSchedule:
    """The schedule of a tokenizer that knows one size."""
    side = config.side // config.stride
    return ScaleSchedule(((side, side),), (side, side))


def of_vit(c: dict[str, Any]) -> QuantizerWeights:
    """Our weights of a whole model's quantiser loss, which sums over channels."""
    group = c["group"] if c["mode"] == "group" else 1
    return QuantizerWeights(c["beta"] * c["embed_dim"], 1.0, c["invT"], group=group)


def of_quantiser(c: dict[str, Any]) -> QuantizerWeights:
    """Our weights of a quantiser alone."""
    return QuantizerWeights(
        c["beta"] * c["embed_dim"],
        c["zeta"] * c["gamma0"],
        c["inv_temperature"],
        c["gamma"] / c["gamma0"],
        c["group_size"] if c["persample_entropy_compute"] == "group" else 1,
    )


def indices(bits: Any, group: int) -> np.ndarray:
    """The release's number of each group of bits, its first the highest."""
    bits = np.asarray(bits)
    groups = bits.reshape(*bits.shape[:-1], -1, group).astype(np.int64)
    return (groups << np.arange(group)[::-1]).sum(-1)


@dataclasses.dataclass(frozen=True)
class BsqVitModels:
    """The tokenizers of a folder, converted when they are first asked for."""

    folder: GoldenFolder
    workdir: Path

    @functools.cache  # noqa: B019  (there is one of them, as long as the tests)
    def of(self, file: GoldenFile) -> tuple[TokenizerConfig, Any]:
        """The config and the parameters that a file was made with."""
        config, name = tokenizer_config(file.info["config"]), file.info["weights"]
        json_file, out = self.workdir / f"{name}.json", self.workdir / name
        json_file.write_text(
            json.dumps({"tokenizer": dataclasses.asdict(config), "scales": str(config.side // config.stride)})
        )
        weights = sorted(self.folder.path.glob(f"{name}.pth")) or [
            self.folder.path / f"{name}_fp16.safetensors"
        ]
        convert(str(weights[0]), "tokenizer", str(json_file), str(out))
        return config, checkpoint_folder.read_arrays(out / checkpoint_folder.WEIGHTS["tokenizer"])


def discriminator_params(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters of the release's StyleGAN discriminator; its filters are constants of ours."""
    params: dict[str, Any] = {}
    for name, value in tensors.items():
        if name.endswith("resample_filter"):
            continue
        *path, kind = our_path(name).split("/")
        at = functools.reduce(lambda tree, key: tree.setdefault(key, {}), path, params)
        order = (2, 3, 1, 0) if value.ndim == 4 else (1, 0) if value.ndim == 2 else (0,)
        at[kind] = jnp.asarray(value.transpose(order).astype(np.float32))
    return params


def our_path(published: str) -> str:
    """The path of our parameter by the release's name."""
    block, layer, kind = published.split(".")
    kind = {"weight": "kernel", "bias": "bias"}[kind]
    if layer == "fromrgb":
        return f"from_rgb/{kind}"
    return f"{layer}/{kind}" if block == "b4" else f"block_{block[1:]}/{layer}/{kind}"
