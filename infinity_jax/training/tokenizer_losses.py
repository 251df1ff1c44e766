"""The quantiser's own loss: commitment and entropy penalty (paper section 3.2, docs/spec.md section 2)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from infinity_jax.errors import UserError
from infinity_jax.metrics.efficientnet import EfficientNetLite0
from infinity_jax.tokenizer import bsq

INVERSE_TEMPERATURE = 100.0
# Past this a table of all codes fits no memory; the paper's Table 3 stops earlier still.
_LARGEST_TABLE_BITS = 24


@dataclasses.dataclass(frozen=True)
class QuantizerWeights:
    """What the quantiser's loss is made of; docs/spec.md section 2, and of BSQ-ViT docs/spec_bsq_vit.md section 2.

    Attributes:
      commitment: weight of the mean squared distance from codes.
      entropy: weight of the entropies, over the inverse temperature.
      inverse_temperature: how hard the bits are whose entropy it is.
      gamma: weight of the codebook's entropy, which is rewarded, beside that of a token, which is punished.
      group: of BSQ: bits counted as one code, see `bsq_entropies`. LFQ counts all bits as one.
    """

    commitment: float = 0.25
    entropy: float = 0.1
    inverse_temperature: float = INVERSE_TEMPERATURE
    gamma: float = 1.0
    group: int = 1


INFINITY = QuantizerWeights()


def _entropy(p: jax.Array, one_minus_p: jax.Array) -> jax.Array:
    # A mean over few samples leaves [0, 1] by rounding, so clamp before the logarithm.
    p, q = (jnp.clip(x, 1e-8, 1.0) for x in (p, one_minus_p))
    return -(p * jnp.log(p) + q * jnp.log(q))


def _mean(x_N: jax.Array, kept_B: jax.Array | None) -> jax.Array:
    """Takes the mean over the first axis, the tokens of B pictures one after the other, of the pictures that are kept.

    Without any it is 0.
    """
    if kept_B is None:
        return jnp.mean(x_N, axis=0)
    tokens = len(x_N) // len(kept_B)
    kept_N = jnp.repeat(kept_B, tokens).reshape(-1, *[1] * (x_N.ndim - 1))
    return jnp.sum(jnp.where(kept_N, x_N, 0.0), axis=0) / (tokens * jnp.maximum(kept_B.sum(), 1))


def bsq_entropies(
    z: Float[Array, "*n d"],
    inverse_temperature: float = INVERSE_TEMPERATURE,
    group: int = 1,
    kept_B: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Entropy terms of BSQ, whose bits are independent of each other in every token (paper eq. 6-7).

    The entropy of a token is the sum of its bits' entropies, exactly. That of the mean over tokens is taken for groups
    of `group` bits and summed: 1 is O(d) in time and memory, d is exact, the entropy over all 2^d codes. Memory grows
    with tokens x d / group x 2^group.

    Args:
      z: float32 [..., d], on the unit sphere.
      group: neighbouring bits counted as one code; divides d.
      kept_B: which pictures count, B of them along the first axis of z; None is all.
    Returns:
      (mean over tokens of the entropy of the soft bits, entropy of their mean), in nats.
    Raises:
      UserError: a group that does not divide d, or of more than 24 bits.
    """
    d = z.shape[-1]
    if not 1 <= group <= _LARGEST_TABLE_BITS or d % group:
        fitting = [str(g) for g in range(1, min(d, _LARGEST_TABLE_BITS) + 1) if d % g == 0]
        raise UserError(
            f"entropy_group {group} must divide the {d} bits and be at most {_LARGEST_TABLE_BITS}; "
            f"use one of {', '.join(fitting)}"
        )
    logit = -4.0 * inverse_temperature * z.reshape(-1, d) / d**0.5
    p, q = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
    per_sample = _mean(jnp.sum(_entropy(p, q), axis=-1), kept_B)
    codes = _mean(_code_probabilities(p, q, group).swapaxes(0, 1), kept_B)
    mean_p = jnp.clip(codes, 1e-8, 1.0)
    return per_sample, -jnp.sum(mean_p * jnp.log(mean_p))


def _code_probabilities(p: jax.Array, q: jax.Array, group: int) -> jax.Array:
    """[2^group, tokens, d / group] of p and q = 1 - p, [tokens, d]: products of the bits of each group."""
    p, q = (x.reshape(-1, x.shape[-1] // group, group) for x in (p, q))
    codes = jnp.ones((1, *p.shape[:2]), p.dtype)
    for bit in range(group):
        codes = jnp.concatenate([codes * p[..., bit], codes * q[..., bit]])
    return codes


def lfq_entropies(
    z: Float[Array, "*n d"],
    inverse_temperature: float = INVERSE_TEMPERATURE,
    kept_B: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Entropy terms of LFQ over all 2^d codes: memory grows with tokens x 2^d (paper Table 3).

    Args and returns as `bsq_entropies`. Raises UserError for d above 24.
    """
    d = z.shape[-1]
    if d > _LARGEST_TABLE_BITS:
        raise UserError(
            f"LFQ's entropy needs 2^{d} codes in memory: {4 * math.prod(z.shape[:-1]) * 2**d:.2g} bytes for one array "
            f"of tokens x codes; use quantizer='bsq' above {_LARGEST_TABLE_BITS} bits"
        )
    codes_Vd = _all_codes(d)
    logits_NV = 2.0 * inverse_temperature * z.reshape(-1, d) @ codes_Vd.T
    log_p = jax.nn.log_softmax(logits_NV, axis=-1)
    p = jnp.exp(log_p)
    per_sample = -_mean(jnp.sum(p * log_p, axis=-1), kept_B)
    mean_p = jnp.clip(_mean(p, kept_B), 1e-12, 1.0)
    return per_sample, -jnp.sum(mean_p * jnp.log(mean_p))


def _all_codes(d: int) -> jax.Array:
    """float32 [2^d, d], made on the device so that it is not a constant of the program."""
    index = jax.lax.broadcasted_iota(jnp.int32, (2**d, d), 0)
    bit = jax.lax.broadcasted_iota(jnp.int32, (2**d, d), 1)
    return 2.0 * ((index >> bit) & 1).astype(jnp.float32) - 1.0


def quantizer_loss(
    z: Float[Array, "*n d"],
    quantizer: str,
    weights: QuantizerWeights = INFINITY,
    kept_B: Bool[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Loss of one scale: commitment + weight * entropy / inverse temperature (docs/spec.md section 2).

    Args:
      z: float32 [..., d], the projected residuals.
      kept_B: which pictures count, B of them along the first axis of z; None is all. Without any the loss is finite.
    Raises:
      UserError: the entropy's table is too large, or the group does not fit.
    """
    if quantizer == "lfq" and weights.group != 1:
        raise UserError(
            f"entropy_group {weights.group} is for quantizer 'bsq'; LFQ's entropy is over all codes, leave it at 1"
        )
    codes = jax.lax.stop_gradient(bsq.to_codes(bsq.to_bits(z), quantizer))
    d = z.shape[-1]
    commitment = jnp.mean(_mean(((z - codes) ** 2).reshape(-1, d), kept_B))
    inverse_temperature = weights.inverse_temperature
    if quantizer == "bsq":
        per_sample, codebook = bsq_entropies(z, inverse_temperature, weights.group, kept_B)
    else:
        per_sample, codebook = lfq_entropies(z, inverse_temperature, kept_B)
    entropy = per_sample - weights.gamma * codebook
    return weights.commitment * commitment + weights.entropy * entropy / inverse_temperature


# Strides 2, 4, 8. Deeper layers of a 64x64 picture are 4x4 and smaller: they know what, not where. The weights
# fall because the gradient of a layer in the pixels grows with its stride (norms 0.013, 0.046, 0.16 for a blur of
# 2 pixels); descending on pixels from that blur, the first layer alone gives outlines, the last one alone speckle,
# and 100 steps of Adam reach 20.5 dB with equal weights and 21.5 dB with these.
LAYER_WEIGHTS = (1.0, 0.5, 0.25)
LAST_STRIDE = 8
NORM_EPSILON = 1e-6


def efficientnet_feature_loss(
    params: Any, image_BHW3: Float[Array, "B H W 3"], reconstruction_BHW3: Float[Array, "B H W 3"]
) -> Float[Array, ""]:
    """How far a reconstruction is from its picture to the eye of an image classifier.

    Takes the variables of `load_efficientnet()` and two float batches [B, H, W, 3] in [-1, 1], at their own size;
    returns a float32 scalar, zero for equal pictures: at strides 2, 4 and 8 the channels are scaled to unit
    length, and the squared distance of these vectors is averaged over places and pictures and summed over the
    layers with LAYER_WEIGHTS. No gradient flows to `params` or to `image_BHW3`.
    """
    params, image_BHW3 = jax.lax.stop_gradient((params, image_BHW3))
    real, made = (_directions(params, image) for image in (image_BHW3, reconstruction_BHW3))
    distances = [jnp.square(a - b).sum(axis=-1).mean() for a, b in zip(real, made, strict=True)]
    return jnp.dot(jnp.array(LAYER_WEIGHTS), jnp.stack(distances))


def _directions(params: Any, image_BHW3: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w C"]]:
    network = EfficientNetLite0()
    layers: Any = network.apply(
        params, image_BHW3.astype(jnp.float32), LAST_STRIDE, method=network.activations
    )
    return [x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + NORM_EPSILON) for x in layers]
