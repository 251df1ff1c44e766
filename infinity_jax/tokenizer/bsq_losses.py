"""The quantiser's own loss: commitment and entropy penalty (paper section 3.2, spec section 2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infinity_jax.errors import UserError
from infinity_jax.tokenizer import bsq

INVERSE_TEMPERATURE = 100.0
COMMITMENT_WEIGHT = 0.25
ENTROPY_WEIGHT = 0.1
# Past this the 2^d table of LFQ's entropy fits no memory; the paper's Table 3 stops earlier still.
_LFQ_LARGEST_BITS = 24


def _entropy(p: jax.Array, one_minus_p: jax.Array) -> jax.Array:
    # A mean over few samples leaves [0, 1] by rounding, so clamp before the logarithm.
    p, q = (jnp.clip(x, 1e-8, 1.0) for x in (p, one_minus_p))
    return -(p * jnp.log(p) + q * jnp.log(q))


def bsq_entropies(
    z: Float[Array, "*n d"], inverse_temperature: float = INVERSE_TEMPERATURE
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Entropy terms of BSQ in O(d) time and memory: every bit on its own (paper eq. 6-7).

    Args:
      z: float32 [..., d], on the unit sphere.
    Returns:
      (mean over tokens of the summed entropy of the soft bits, summed entropy of their mean), in nats.
    """
    logit = -4.0 * inverse_temperature * z / z.shape[-1] ** 0.5
    p, q = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
    per_sample = jnp.mean(jnp.sum(_entropy(p, q), axis=-1))
    tokens = tuple(range(z.ndim - 1))
    codebook = jnp.sum(_entropy(jnp.mean(p, tokens), jnp.mean(q, tokens)))
    return per_sample, codebook


def lfq_entropies(
    z: Float[Array, "*n d"], inverse_temperature: float = INVERSE_TEMPERATURE
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Entropy terms of LFQ over all 2^d codes: memory grows with tokens x 2^d (paper Table 3).

    Args and returns as `bsq_entropies`. Raises UserError for d above 24.
    """
    d = z.shape[-1]
    if d > _LFQ_LARGEST_BITS:
        raise UserError(
            f"LFQ's entropy needs 2^{d} codes in memory; use quantizer='bsq' above {_LFQ_LARGEST_BITS} bits"
        )
    codes_Vd = _all_codes(d)
    logits_NV = 2.0 * inverse_temperature * z.reshape(-1, d) @ codes_Vd.T
    log_p = jax.nn.log_softmax(logits_NV, axis=-1)
    p = jnp.exp(log_p)
    per_sample = -jnp.mean(jnp.sum(p * log_p, axis=-1))
    mean_p = jnp.clip(jnp.mean(p, axis=0), 1e-12, 1.0)
    return per_sample, -jnp.sum(mean_p * jnp.log(mean_p))


def _all_codes(d: int) -> jax.Array:
    """float32 [2^d, d], made on the device so that it is not a constant of the program."""
    index = jax.lax.broadcasted_iota(jnp.int32, (2**d, d), 0)
    bit = jax.lax.broadcasted_iota(jnp.int32, (2**d, d), 1)
    return 2.0 * ((index >> bit) & 1).astype(jnp.float32) - 1.0


def quantizer_loss(z: Float[Array, "*n d"], quantizer: str, gamma: float = 1.0) -> Float[Array, ""]:
    """Loss of one scale: 0.25 * commitment + 0.1 * entropy / inverse temperature (spec section 2).

    Args:
      z: float32 [..., d], the projected residuals.
      gamma: weight of the codebook's entropy, which is rewarded.
    """
    codes = jax.lax.stop_gradient(bsq.to_codes(bsq.to_bits(z), quantizer))
    commitment = jnp.mean((z - codes) ** 2)
    per_sample, codebook = (bsq_entropies if quantizer == "bsq" else lfq_entropies)(z)
    entropy = per_sample - gamma * codebook
    return COMMITMENT_WEIGHT * commitment + ENTROPY_WEIGHT * entropy / INVERSE_TEMPERATURE
