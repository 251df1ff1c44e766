"""The models of a golden folder in our form, and what they compute: values on the way, gradients, samples."""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import drawing
from helpers.golden_folder import TIE, GoldenFile, GoldenFolder
from helpers.transformer_values import values_on_the_way
from infinity_jax.checkpoints import folder as checkpoint_folder
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.runtime import trees
from infinity_jax.sampling import bits
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.tokenizer import bsq
from infinity_jax.tools.convert.convert import main as convert
from infinity_jax.tools.convert.links import Link
from infinity_jax.tools.convert.transformer_names import chunks_of, transformer_links
from infinity_jax.training.transformer_losses import bit_loss
from infinity_jax.transformer.transformer import Transformer


@functools.cache
def forward_values(models: "GoldenModels", file: GoldenFile) -> dict[str, Any]:
    """What the transformer computes from a file's text and inputs, by the release's names, at all positions."""
    config, params = models.of(file)[:2]
    return values_on_the_way(config, params, file.schedule, file.text(), file.arrays["x_BLC_wo_prefix"])


@functools.cache
def compiled_logits(config: TransformerConfig, file: GoldenFile):
    """(params, pictures without caption bool [B]) -> logits [B,L,2d] of a file's batch."""
    text, inputs_BLd, schedule = file.text(), file.arrays["x_BLC_wo_prefix"], file.schedule

    @jax.jit
    def logits(params, text, inputs_BLd, drop_B):
        out = jnp.asarray(Transformer(config).apply({"params": params}, inputs_BLd, *text, schedule, drop_B))
        return out.reshape(*out.shape[:2], -1)

    return lambda params, drop_B: logits(params, text, inputs_BLd, drop_B)


_LOSS = re.compile(r"(?:drop(?P<drop>\d+)_)?(?:(?P<sum>sum_bits)_)?(?P<weights>mean|reweighted)(?:_x_d)?")


class Loss(NamedTuple):
    """What the release's name of a loss says: `mean`, `reweighted`, `sum_bits_reweighted_x_d`, `drop0_mean`.

    Attributes:
      weights, label_smoothing: arguments of our loss.
      dropped: the picture without caption, if any.
      factor: the release's loss over ours.
    """

    weights: str
    label_smoothing: float
    dropped: int | None
    factor: float


def read_loss(name: str, values: dict[str, Any], bits: int) -> Loss:
    """The loss `name` of a file of gradients, with what the file says about it."""
    match = _LOSS.fullmatch(name)
    assert match, f"unknown loss {name!r}"
    weights = {"mean": "uniform", "reweighted": "by_scale"}[match["weights"]]
    dropped = None if match["drop"] is None else int(match["drop"])
    return Loss(weights, values.get("label_smoothing", 0.0), dropped, bits if match["sum"] else 1)


def by_published_name(
    config: TransformerConfig, gradient: Any, names: Iterable[str]
) -> dict[str, np.ndarray]:
    """A gradient in the form of the published parameters, grouped into chunks as in `names`."""
    flat = {trees.parameter_name(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(gradient)}
    links = [link for link in transformer_links(config, chunks_of(names)) if isinstance(link, Link)]
    rows = {link: slice(None) if link.layer is None else link.layer for link in links}
    return {
        link.published: link.to_published(tuple(flat[x][rows[link]] for x in link.ours)) for link in links
    }


@functools.cache
def compiled_gradients(config: TransformerConfig, file: GoldenFile, losses: tuple[Loss, ...]):
    """(params, loss) -> its value and its gradient, for any of `losses` on a file's batch; compiled once for all."""
    kinds = sorted({loss[:2] for loss in losses})
    text, inputs_BLd, schedule = file.text(), file.arrays["x_BLC_wo_prefix"], file.schedule
    bits_BLd = file.arrays["gt_bits"].astype(np.int8)

    @jax.jit
    def values_and_gradient(params, text, inputs_BLd, bits_BLd, drop_B, cotangent):
        def values(params):
            logits = Transformer(config).apply({"params": params}, inputs_BLd, *text, schedule, drop_B)
            return jnp.stack([bit_loss(jnp.asarray(logits), bits_BLd, schedule, *kind)[0] for kind in kinds])

        out, pull_back = jax.vjp(values, params)
        return out, pull_back(cotangent)[0]

    def one(params, loss: Loss):
        drop_B = np.arange(len(bits_BLd)) == (-1 if loss.dropped is None else loss.dropped)
        cotangent = loss.factor * np.eye(len(kinds), dtype=np.float32)[kinds.index(loss[:2])]
        values, gradient = values_and_gradient(params, text, inputs_BLd, bits_BLd, drop_B, cotangent)
        return float(values @ cotangent), gradient

    return one


def sampler_config(file: GoldenFile, model: TransformerConfig, tokenizer: TokenizerConfig) -> SamplerConfig:
    """The sampler of a file: where it mixes conditional and unconditional rows."""
    # The release's 1 stands for mixing probabilities, which it does not do.
    places = set(np.atleast_1d(file.info["cfg_insertion_layer"]).tolist()) - {1}
    guided = any(cfg != 1 for cfg in file.info["cfg_list"])
    layers = tuple(sorted(place for place in places if place < 0))
    mixed = {(True, True): "both", (True, False): "logits", (False, True): "features", (False, False): "none"}
    place = mixed[0 in places, bool(layers)] if guided else "none"
    return SamplerConfig(model, tokenizer, file.schedule, place, layers, decoder_dtype="float32")


def sampler_inputs(file: GoldenFile) -> SamplerInputs:
    """The arguments of a file's sampling, greedy: the likelier value of every bit."""
    n_scales, (text, mask) = file.schedule.n_scales, file.text()
    negative = negative_mask = None
    if file.info.get("negative_lens"):
        negative, negative_mask = file.text("negative_")
        length = max(text.shape[1], negative.shape[1])
        text, mask, negative, negative_mask = (
            np.pad(x, ((0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)))
            for x in (text, mask, negative, negative_mask)
        )
    cfg, tau = (np.array(file.info[name][:n_scales], np.float32) for name in ("cfg_list", "tau_list"))
    inputs = drawing.sampler_inputs(text, mask, np.zeros(len(text)), cfg, tau, top_p=0)  # nothing unlikely
    return inputs._replace(
        **jax.tree.map(jnp.asarray, {"negative_BTC": negative, "negative_mask_BT": negative_mask})
    )


@contextlib.contextmanager
def residual_ties_taken_from(given_bits: Sequence[jax.Array]) -> Iterator[None]:
    """Inside, the quantiser takes the release's bit where a projected residual is within `TIE` of zero.

    So that all other bits can be compared, also those of later scales, which depend on every earlier bit.
    `given_bits` are those of every scale, bool [B,h_k,w_k,d].
    """
    by_size = {bits.shape[1:3]: bits for bits in given_bits}
    assert len(by_size) == len(given_bits)
    to_bits = bsq.to_bits

    def with_given(z):
        return jnp.where(jnp.abs(z) < TIE, by_size[z.shape[1:3]], to_bits(z))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bsq, "to_bits", with_given)
        yield


@contextlib.contextmanager
def logit_ties_taken_from(given_BLd: jax.Array, offsets: Sequence[int]) -> Iterator[list[jax.Array]]:
    """The same for the sampler and its logits, as they are after the temperature; `given_BLd` is bool.

    Gives the list of each scale's differences of the two logits of a bit, float32 [B,N,d].
    """
    draw_bits, differences = bits.draw_bits, []

    def with_given(difference_BNd, settings):
        drawn_BNd = draw_bits(difference_BNd, settings)
        differences.append(difference_BNd / settings.tau_B[:, None, None])
        given_BNd = given_BLd[:, offsets[settings.scale] : offsets[settings.scale + 1]]
        return jnp.where(jnp.abs(differences[-1]) < TIE, given_BNd, drawn_BNd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "draw_bits", with_given)
        yield differences


class System(NamedTuple):
    """A transformer and its tokenizer. Parameters are None where the folder has no weights."""

    transformer: TransformerConfig
    params: Any
    tokenizer: TokenizerConfig
    tokenizer_params: Any

    @property
    def weights(self) -> Any:
        """The transformer's parameters."""
        assert self.params is not None, (
            "the folder has no weights of this transformer (*_transformer*.pth or _fp16)"
        )
        return self.params


class GoldenModels:
    """The systems of a golden folder, converted when they are first asked for."""

    def __init__(self, folder: GoldenFolder, workdir: Path):
        self._folder, self._workdir = folder, workdir
        self._systems: dict[str, System] = {}

    def of(self, file: GoldenFile) -> System:
        """The system that a file was made with."""
        prefix = self._folder.prefix_of(file)
        if prefix not in self._systems:
            configs = self._folder.configs(prefix)
            files = {kind: self._folder.weights(kind, prefix) for kind in configs}
            params = {kind: self.converted(files[kind][0], kind, prefix) for kind in configs if files[kind]}
            self._systems[prefix] = System(
                configs["transformer"],
                params.get("transformer"),
                configs["tokenizer"],
                params.get("tokenizer"),
            )
        return self._systems[prefix]

    def converted(self, weights: Path, kind: str, prefix: str) -> Any:
        """Parameters as `infinity-jax convert` makes them of a file."""
        config = self._workdir / f"{weights.name}.json"
        config.write_text(json.dumps({kind: dataclasses.asdict(self._folder.configs(prefix)[kind])}))
        out = self._workdir / weights.name
        convert(str(weights), kind, str(config), str(out))
        return checkpoint_folder.read_arrays(out / checkpoint_folder.WEIGHTS[kind])
