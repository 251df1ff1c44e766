"""Cross-entropy of bits, or of whole tokens, and its metrics per scale (docs/spec.md section 5, paper Table 5)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import indices

TOKEN_WEIGHTS = ("uniform", "by_scale")


def token_weights(schedule: ScaleSchedule, kind: str) -> np.ndarray:
    """float32 [L], sums to 1: "uniform", or "by_scale" = proportional to 1 / sqrt(h_k w_k) for tokens of scale k."""
    if kind not in TOKEN_WEIGHTS:
        raise UserError(f"unknown token weights {kind!r}; use one of {TOKEN_WEIGHTS}")
    power = -0.5 if kind == "by_scale" else 0.0
    weights = np.concatenate([np.full(n, float(n) ** power) for n in schedule.tokens])
    return (weights / weights.sum()).astype(np.float32)


def bit_loss(
    logits_BLd2: Float[Array, "B L d 2"],
    bits_BLd: Int[Array, "B L d"],
    schedule: ScaleSchedule,
    weights: str = "uniform",
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Cross-entropy of every bit, mean over bits and pictures, weighted over tokens.

    Args:
      logits_BLd2: float32.
      bits_BLd: int8, 0 or 1.
      schedule: static.
      weights: of the tokens, see `token_weights`.
      label_smoothing: share of the probability that the target spreads evenly over both classes.
    Returns:
      float32 scalar, and metrics: `loss_per_scale`, `bit_accuracy_per_scale` and `token_accuracy_per_scale` (all d bits
      right), each float32 [K], and `bit_accuracy`, float32 scalar, the mean over all tokens.
    """
    # Two classes: everything depends on the difference of the logits, with the sign of the right class.
    margin = (logits_BLd2[..., 1] - logits_BLd2[..., 0]) * (2 * bits_BLd.astype(jnp.float32) - 1)
    losses_BL = jax.nn.softplus(-margin).mean(-1) + 0.5 * label_smoothing * margin.mean(-1)
    margin = jax.lax.stop_gradient(margin)
    # argmax gives class 0 on a tie, so a positive bit is right only above 0.
    right_BLd = jnp.where(bits_BLd > 0, margin > 0, margin >= 0)
    return _weighted(losses_BL, right_BLd, schedule, weights)


def index_loss(
    logits_BLV: Float[Array, "B L V"],
    bits_BLd: Int[Array, "B L d"],
    schedule: ScaleSchedule,
    weights: str = "uniform",
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Cross-entropy among all V = 2^d indices, divided by d: in nats a bit, like `bit_loss`, and weighted as there.

    Args:
      logits_BLV: float32, of the indices in the order of `tokenizer.indices`.
      label_smoothing: share of the probability that the target spreads evenly over all indices.
    Returns:
      as `bit_loss`; bits are right where those of the likeliest index are.
    """
    d = bits_BLd.shape[-1]
    losses_BL = _cross_entropies(logits_BLV, indices.to_index(bits_BLd), label_smoothing) / d
    likeliest_BL = jnp.argmax(jax.lax.stop_gradient(logits_BLV), -1)
    right_BLd = indices.to_bits(likeliest_BL, d) == (bits_BLd > 0)
    return _weighted(losses_BL, right_BLd, schedule, weights)


def code_loss(
    logits_BLV: Float[Array, "B L V"],
    code_BL: Int[Array, "B L"],
    schedule: ScaleSchedule,
    weights: str = "uniform",
    label_smoothing: float = 0.0,
    factors_K: Float[Array, " K"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Cross-entropy among the numbers of all V codes, in nats a token, weighted as in `bit_loss`.

    Args:
      label_smoothing: share of the probability that the target spreads evenly over all codes.
      factors_K: what the losses of each scale are multiplied by besides; None is 1.
    Returns:
      as `bit_loss`; a token counts as one bit, which is right where the likeliest code is the token's.
    """
    losses_BL = _cross_entropies(logits_BLV, code_BL, label_smoothing)
    right_BL = jnp.argmax(jax.lax.stop_gradient(logits_BLV), -1) == code_BL
    if factors_K is not None:
        losses_BL = losses_BL * factors_K[jnp.asarray(schedule.scale_of_token)]
    return _weighted(losses_BL, right_BL[..., None], schedule, weights)


def loss_of(config: TransformerConfig) -> Callable:
    """Picks the loss of a transformer's head."""
    if config.head == "bits":
        return bit_loss
    return code_loss if config.codes else index_loss


def _cross_entropies(logits_BLV: jax.Array, index_BL: jax.Array, label_smoothing: float) -> jax.Array:
    """Computes the cross-entropy of each token, float32 [B,L]."""
    # Summed, not gathered: its gradient would be a scatter, which is slow and cannot be split over devices.
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits_BLV.shape, 2) == index_BL[..., None]
    target_BL = jnp.sum(jnp.where(is_target, logits_BLV, 0.0), -1)
    if label_smoothing:
        target_BL += label_smoothing * (logits_BLV.mean(-1) - target_BL)
    return jax.nn.logsumexp(logits_BLV, axis=-1) - target_BL


def _weighted(
    losses_BL: jax.Array, right_BLd: jax.Array, schedule: ScaleSchedule, weights: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted mean of the tokens' losses, and the metrics."""
    loss = (losses_BL.mean(0) * token_weights(schedule, weights)).sum()
    per_token = {
        "loss_per_scale": jax.lax.stop_gradient(losses_BL),
        "bit_accuracy_per_scale": right_BLd.mean(-1),
        "token_accuracy_per_scale": right_BLd.all(-1).astype(jnp.float32),
    }
    ranges = list(zip(schedule.offsets[:-1], schedule.offsets[1:], strict=True))
    metrics = {name: jnp.stack([x_BL[:, a:b].mean() for a, b in ranges]) for name, x_BL in per_token.items()}
    return loss, metrics | {"bit_accuracy": right_BLd.mean()}
