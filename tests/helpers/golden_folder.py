"""A folder of numbers that the public release produced: what its files hold, and how ours are compared with them.

A file `X.json` says what the arrays of `X.safetensors` mean and with which configuration they were made. Which kind
of file it is follows from its keys, and all sizes from its configuration; names decide only which weights belong to
it: those with the same beginning (`h_patchify_*`), else those that begin with `g`.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from infinity_jax import scales
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.scales import ScaleSchedule

# Largest error in float32, relative to the largest absolute value of the reference.
SINGLE_LAYER, WHOLE_MODEL = 2e-5, 2e-4
# So close to its threshold a logit or residual may give the other bit.
TIE = 1e-4

# Of NSARM's files, each by a key that it alone has.
NSARM_KINDS = {
    "stage1": "nsarm_training",
    "given_scales": "nsarm_sampling",
    "layout_note": "nsarm_network",
    "first_four_of": "nsarm_network_full_size",
    "cases_of_kernels": "nsarm_degradation",
    "levels": "nsarm_colour",
}

_COMMON_WEIGHTS = "g"
_WEIGHTS = re.compile(r"(.+)_(transformer|vae)(?:_fp16\.safetensors|\.pth)")


@dataclasses.dataclass(frozen=True, eq=False)
class GoldenFile:
    """One JSON file and the arrays beside it."""

    path: Path
    info: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, which are those that the JSON file lists."""
        listed = self.info.get("tensors", {})
        beside = self.path.with_suffix(".safetensors")
        assert not listed or beside.is_file(), f"{beside} is missing: {self.path.name} describes its arrays"
        arrays = load_file(beside) if listed else {}
        assert arrays.keys() == listed.keys(), f"{self.name}: not the listed arrays: {sorted(arrays)}"
        return arrays

    @property
    def kind(self) -> str:
        """What the file is about: "note" if it has no arrays, "unknown" if nothing here knows what to do with them."""
        keys, config = self.info.keys(), self.info.get("config") or {}
        if "kind" in keys:  # in the folders of other systems than Infinity
            return self.info["kind"]
        for key, kind in NSARM_KINDS.items():
            if key in keys:
                return kind
        if "dynamic_resolution_h_w" in keys:
            return "schedules"
        if "cases" in keys:
            return "resizes"
        if "losses" in keys:
            return "gradients"
        if "cfg_list" in keys:
            return "sampling"
        if "position_stride" in keys:
            return "forward"
        if "shapes" in keys:
            return "weights"
        if "tensors" not in keys:
            return "note"
        if "vae_config" in keys:
            return "autoencoder"
        return "quantiser" if "d" in config and "scale_schedule" in config else "unknown"

    @functools.cached_property
    def schedule(self) -> ScaleSchedule:
        """The scale schedule that the file was made with: ours of its ratio and budget, checked to be equal."""
        config = self.info["config"]
        given = _sizes(self.info.get("scale_schedule") or config["scale_schedule"])
        if self.kind == "quantiser":  # which has no positions, so any schedule will do
            return ScaleSchedule(given, given[-1])
        ours = scales.make_schedule(config["pn"], nearest_ratio(config["ratio"]))
        assert ours.sizes == given, f"{self.name} has another schedule than ours: {given}"
        finer = _sizes(self.info.get("vae_scale_schedule") or [])
        assert finer in ((), ours.times(self.patchify).sizes), f"{self.name}: the tokenizer's is {finer}"
        return ours

    @property
    def patchify(self) -> int:
        """Side of the square of tokens that the transformer reads as one."""
        return 2 if self.info["config"].get("patchify") else 1

    def features_BHWd(self) -> np.ndarray:
        """The tokenizer's features in this file, float32."""
        features = self.arrays["features" if "features" in self.arrays else "raw_features"]
        return channels_last(features)

    def flips(self) -> tuple[np.ndarray, ...]:
        """The flips that the release applied: K arrays bool [B,h_k,w_k,d] at the tokenizer's resolution."""
        config, features = self.info["config"], self.features_BHWd()
        flips = []
        for k, (h, w) in enumerate(self.schedule.times(self.patchify).sizes):
            # Without requantising, the release draws flips but lets nothing depend on them.
            applied = config.get("noise_apply_requant", 1) and k < config.get("noise_apply_layers", k + 1)
            none = np.zeros((len(features), 1, h, w, features.shape[-1]), bool)
            flips.append((self.arrays.get(f"flip_mask_{k}", none) if applied else none)[:, 0].astype(bool))
        return tuple(flips)

    def text(self, prefix: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Padded text features float32 [B,T,C] and the mask bool [B,T] of their tokens."""
        lens = self.info[f"{prefix}lens"]
        features = np.split(self.arrays[f"{prefix}text_features"], np.cumsum(lens)[:-1])
        text = [np.pad(part, ((0, max(lens) - len(part)), (0, 0))) for part in features]
        return np.stack(text), np.arange(max(lens)) < np.array(lens)[:, None]


class GoldenFolder:
    """All files of a folder."""

    def __init__(self, path: Path):
        self.path = path
        self.files = [GoldenFile(file, json.loads(file.read_text())) for file in sorted(path.glob("*.json"))]
        if not self.files:
            raise pytest.UsageError(f"--golden {path}: no golden files (*.json) there")

    def of_kind(self, kind: str) -> list[GoldenFile]:
        return [file for file in self.files if file.kind == kind]

    def weights(self, kind: str, prefix: str) -> list[Path]:
        """The files with the weights of the "transformer" or "tokenizer" whose names begin with `prefix`."""
        part = {"transformer": "transformer", "tokenizer": "vae"}[kind]
        matches = (
            (_WEIGHTS.fullmatch(file.name), file) for file in sorted(self.path.iterdir(), reverse=True)
        )
        return [file for match, file in matches if match and match.groups() == (prefix, part)]

    def prefixes(self) -> list[str]:
        """The beginnings of the names of all weights."""
        return sorted({match[1] for file in self.path.iterdir() if (match := _WEIGHTS.fullmatch(file.name))})

    def prefix_of(self, file: GoldenFile) -> str:
        """The beginning of the names of the weights that a file was made with."""
        return max((p for p in self.prefixes() if file.name.startswith(f"{p}_")), default=_COMMON_WEIGHTS)

    def forward_of(self, gradients: GoldenFile) -> GoldenFile:
        """The file with the batch that a file of gradients was made with: `e_transformer` for `e_grads`."""
        stem = gradients.name.removesuffix("_grads")
        found = [file for file in self.of_kind("forward") if f"{file.name}_".startswith(f"{stem}_")]
        assert found, f"{gradients.name} needs a file {stem}*.json with the batch"
        return min(found, key=lambda file: len(file.name))

    def configs(self, prefix: str) -> dict[str, Any]:
        """Our configs of the "transformer" and the "tokenizer" whose weights' names begin with `prefix`."""
        infos = [file.info for file in self.files if self.prefix_of(file) == prefix]
        of_transformer = [
            c for info in infos for c in (info.get("config"), info.get("transformer_config")) if c
        ]
        c = next(c for c in of_transformer if "embed_dim" in c)
        # Without a file about the tokenizer nothing is known but its bits, and nothing else is read.
        side = 2 if c.get("patchify") else 1
        unknown = TokenizerConfig(bits=c["d_vae"] // side**2, patchify=side)
        of_tokenizer = (tokenizer_config(info["vae_config"], side) for info in infos if "vae_config" in info)
        return {"transformer": transformer_config(c), "tokenizer": next(of_tokenizer, unknown)}


def transformer_config(c: dict[str, Any]) -> TransformerConfig:
    """Our config from the release's names."""
    config = TransformerConfig(
        layers=c["depth"],
        width=c["embed_dim"],
        heads=c["num_heads"],
        bits=c["d_vae"],
        text_channels=c["Ct5"],
        text_length=c["text_maxlen"],
        drop_path=0.0,
        compute_dtype="float32",
    )
    assert c.get("mlp_ratio", 4) == 4, f"all published sizes have mlp_ratio 4, this one {c['mlp_ratio']}"
    assert c.get("mlp_hidden", config.ffn_width) == config.ffn_width
    assert c.get("text_pool_heads", config.pool_heads) == config.pool_heads
    return config


def tokenizer_config(c: dict[str, Any], patchify: int) -> TokenizerConfig:
    """Our config from the release's names; its decoder has one residual block a level more than its encoder."""
    config = TokenizerConfig(
        bits=c["codebook_dim"],
        base_width=c["base_ch"],
        multipliers=tuple(c["encoder_ch_mult"]),
        decoder_multipliers=tuple(c.get("decoder_ch_mult", ())),
        encoder_blocks=c["num_res_blocks"],
        decoder_blocks=c["num_res_blocks"] + 1,
        patchify=patchify,
    )
    assert c.get("patch_size", config.stride) == config.stride
    return config


def _sizes(schedule: Iterable[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Of a schedule in the release's form, (frames, height, width) for every scale."""
    return tuple((h, w) for _, h, w in schedule)


def nearest_ratio(height_over_width: float) -> str:
    """Our name of an aspect ratio that the release writes as a rounded number, such as 0.666."""
    return scales.nearest_aspect_ratio(round(height_over_width * 1000), 1000)


def channels_last(x: np.ndarray) -> np.ndarray:
    """[B,d,h,w] or [B,d,1,h,w] -> [B,h,w,d]."""
    return np.moveaxis(x.reshape(*x.shape[:2], *x.shape[-2:]), 1, -1)


def relative_error(ours: Any, reference: Any) -> float:
    """Largest absolute difference over the largest absolute value of the reference."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape, f"shape {ours.shape} instead of {reference.shape}"
    largest = np.abs(reference, dtype=np.float64).max(initial=0.0)
    difference = np.abs(np.subtract(ours, reference, dtype=np.float64)).max(initial=0.0)
    return float(difference / largest) if largest else float(difference)


def assert_close(ours: Any, reference: Any, tolerance: float, what: str) -> None:
    """Fails where the relative error is above the tolerance, or not a number."""
    error = relative_error(ours, reference)
    assert error <= tolerance, f"{what}: relative error {error:.2g}, allowed {tolerance:g}"


def join(bits: Iterable[np.ndarray]) -> np.ndarray:
    """Bits of all scales [B,...,d], one scale after the other, uint8 [B,L,d]."""
    return np.concatenate([np.asarray(x, np.uint8).reshape(len(x), -1, x.shape[-1]) for x in bits], 1)
