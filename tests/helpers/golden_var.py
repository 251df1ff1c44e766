"""A folder of numbers of VAR's public release: every JSON says its `kind`, and which weights it was made with."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from helpers.golden_folder import WHOLE_MODEL, GoldenFile, GoldenFolder
from infinity_jax.checkpoints import folder as checkpoint_folder
from infinity_jax.config import LABEL_CHANNELS, TokenizerConfig, TransformerConfig
from infinity_jax.runtime import trees
from infinity_jax.sampling import guidance, sampler
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import vq
from infinity_jax.tokenizer.model import quantizer_of as quantizer_of_tokenizer
from infinity_jax.tools.convert.convert import main as convert
from infinity_jax.tools.convert.links import Link
from infinity_jax.transformer.conditions import digits


def scales_of(config: dict[str, Any]) -> str:
    """The name of a schedule with the release's sizes."""
    return "-".join(map(str, config["patch_nums"]))


def schedule_of(config: dict[str, Any]) -> ScaleSchedule:
    """The schedule of the release's sizes."""
    sizes = tuple((n, n) for n in config["patch_nums"])
    return ScaleSchedule(sizes, sizes[-1])


def transformer_config(c: dict[str, Any]) -> TransformerConfig:
    """Our config from the release's names."""
    return TransformerConfig(
        layers=c["depth"],
        width=c["embed_dim"],
        heads=c["num_heads"],
        bits=c["Cvae"],
        head="index",
        codes=c["vocab_size"],
        positions=f"learned+scales:{scales_of(c)}",
        condition="class",
        classes=c["num_classes"],
        text_channels=LABEL_CHANNELS,
        text_length=1,
        adaln="shared" if c["shared_aln"] else "own",
        attention="cosine" if c["attn_l2_norm"] else "plain",
        ffn_multiple=1,
        drop_path=0.0,
        compute_dtype="float32",
    )


def tokenizer_config(c: dict[str, Any]) -> TokenizerConfig:
    """Our config from the release's names; its decoder has one residual block a level more than its encoder."""
    return TokenizerConfig(
        bits=c["z_channels"],
        quantizer="vq",
        codes=c["vocab_size"],
        phis=c["share_quant_resi"],
        phi_share=c["quant_resi"],
        base_width=c["ch"],
        multipliers=tuple(c["ch_mult"]),
        encoder_blocks=c["num_res_blocks"],
        decoder_blocks=c["num_res_blocks"] + 1,
        attention=True,
        latent_kernel=3,
    )


def quantizer_of(file: GoldenFile) -> vq.VectorQuantizer:
    """The quantiser of a file that holds its parameters."""
    c, arrays, n_scales = file.info["config"], file.arrays, len(file.info["config"]["patch_nums"])
    shared = c["share_quant_resi"]
    names = [f"weight/quant_resi.{name}" for name in phi_names(shared, n_scales)]
    kernels = np.stack([arrays[f"{name}.weight"].transpose(2, 3, 1, 0) for name in names])
    biases = np.stack([arrays[f"{name}.bias"] for name in names])
    phis = vq.phi_of_scale(n_scales, shared)
    codes = arrays["weight/embedding.weight"]
    codes, kernels, biases = map(jnp.asarray, (codes, kernels, biases))
    return vq.VectorQuantizer(codes, kernels, biases, phis, c["quant_resi"], c["using_znorm"])


def phi_names(shared: int, n_scales: int) -> list[str]:
    """The release's names of the convolutions, of which `shared` are shared by the scales."""
    if shared == 1:
        return ["qresi"]
    return [f"qresi_ls.{i}" for i in range(shared)] if shared else [str(i) for i in range(n_scales)]


def texts(labels: np.ndarray) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Labels as the features that stand for captions, and their mask."""
    return digits(jnp.asarray(labels, jnp.int32))[:, None], jnp.ones((len(labels), 1), bool)


class System(NamedTuple):
    """A transformer, or None, and the tokenizer, or None, with their parameters."""

    transformer: Any
    params: Any
    tokenizer: Any
    tokenizer_params: Any


@dataclasses.dataclass(frozen=True)
class VarModels:
    """The models of a folder, converted when they are first asked for."""

    folder: GoldenFolder
    workdir: Path

    @functools.cache  # noqa: B019  (there is one of them, as long as the tests)
    def of(self, file: GoldenFile) -> System:
        """The system that a file was made with: the weights that it names, or those that its own name begins with."""
        named = file.info.get("weights", [f"{file.name.split('_')[0]}_vae"])
        named = [named] if isinstance(named, str) else named
        system = System(None, None, None, None)
        for name in named:
            info = next(f.info for f in self.folder.files if f.name == name)
            if name.endswith("_vae"):
                config: Any = tokenizer_config(info["vae_config"])
                params = self._converted(name, "tokenizer", config, scales_of(info["vae_config"]))
                system = system._replace(tokenizer=config, tokenizer_params=params)
            else:
                config = transformer_config(info["config"])
                params = self._converted(name, "transformer", config, scales_of(info["config"]))
                system = system._replace(transformer=config, params=params)
        return system

    def _converted(self, name: str, kind: str, config: Any, scales: str) -> Any:
        file, out = self.workdir / f"{name}.json", self.workdir / name
        text = {"encoder": "labels", "max_length": 1, "classes": getattr(config, "classes", 0)}
        sections = {kind: dataclasses.asdict(config), "scales": scales, "text": text}
        file.write_text(json.dumps(sections))
        convert(str(self.folder.path / f"{name}_fp16.safetensors"), kind, str(file), str(out))
        return checkpoint_folder.read_arrays(out / checkpoint_folder.WEIGHTS[kind])


def by_published_name(gradient, links) -> dict[str, np.ndarray]:
    """A gradient in the form of the published parameters."""
    flat = {trees.parameter_name(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(gradient)}
    links = [link for link in links if isinstance(link, Link)]
    rows = {link: slice(None) if link.layer is None else link.layer for link in links}
    return {
        link.published: link.to_published(tuple(flat[x][rows[link]] for x in link.ours)) for link in links
    }


def assert_norms(gradient: dict[str, np.ndarray], given: dict[str, float]) -> None:
    """Compares the norm of every parameter's gradient with the release's."""
    total = np.sqrt(sum(np.square(norm) for norm in given.values()))
    assert gradient.keys() == given.keys()
    for parameter, reference in given.items():
        ours = np.linalg.norm(gradient[parameter].astype(np.float64))
        # Where a gradient vanishes by itself, what is left is rounding of the others.
        allowed = WHOLE_MODEL * reference + np.finfo(np.float32).eps * total
        assert abs(ours - reference) <= allowed, f"{parameter}: norm {ours:.8g} instead of {reference:.8g}"


def joined(symbols: tuple[jax.Array, ...]) -> np.ndarray:
    """Symbols of all scales, one after the other, [B,L]."""
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in symbols], 1)


def split(symbols_BL: np.ndarray, schedule: ScaleSchedule) -> tuple[np.ndarray, ...]:
    """The inverse of `joined`."""
    parts = np.split(symbols_BL, schedule.offsets[1:-1], 1)
    return tuple(x.reshape(len(x), *size) for x, size in zip(parts, schedule.sizes, strict=True))


def sampler_of(file, system, **settings) -> tuple[SamplerConfig, SamplerInputs]:
    """The sampler of a file, greedy, with the release's guidance that grows with the scale."""
    arrays, cfg = file.arrays, file.info["cfg"]
    schedule, batch = system.transformer.learned_schedule, len(arrays["label_B"])
    config = SamplerConfig(
        system.transformer,
        system.tokenizer,
        schedule,
        "logits" if cfg else "none",
        decoder_dtype="float32",
        **settings,
    )
    strengths = jnp.asarray(np.tile(guidance.strengths("pyramid", 1 + cfg, schedule.n_scales), (batch, 1)))
    tau, top_p = jnp.zeros_like(strengths), jnp.ones(batch)
    seeds = jnp.zeros(batch, jnp.uint32)
    return config, SamplerInputs(*texts(arrays["label_B"]), seeds, strengths, tau, top_p)


def drawn(config, system, inputs):
    """Draws codes, and the picture of what was drawn."""
    quantizer = quantizer_of_tokenizer(system.tokenizer, system.tokenizer_params, config.schedule.n_scales)
    out = jax.jit(functools.partial(sampler.draw, config))(system.params, inputs, quantizer)
    return out, lambda: sampler.make_sampler.__wrapped__(config)(
        system.params, system.tokenizer_params, inputs
    )
