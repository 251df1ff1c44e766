"""The two networks around the quantiser, of convolutions or of attention, and between them and pictures."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infinity_jax.config import VIT, TokenizerConfig
from infinity_jax.tokenizer import autoencoder, vit

# What is left free at both ends of [0, 1], so that logits of pixels are finite (docs/spec_bsq_vit.md section 3).
_MARGIN = 0.1


def networks_of(config: TokenizerConfig) -> tuple[type[nn.Module], type[nn.Module]]:
    """Chooses the modules of encoder and decoder, each of which is made of a config.

    The encoder maps what `seen` gives, float32 [B,H,W,3], to features float32 [B,h,w,bits]; the decoder codes float32
    [B,h,w,bits] to what `shown` makes pictures of, float32 [B,H,W,3 or 6].
    """
    room = vit if config.architecture == VIT else autoencoder
    return room.Encoder, room.Decoder


def seen(config: TokenizerConfig, image_BHW3: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """Makes of pictures in [-1,1] what the encoder reads: the same, or for `laplace` pixels in [0.1, 0.9]."""
    if not config.laplace:
        return image_BHW3
    return (1 - 2 * _MARGIN) * (image_BHW3 + 1) / 2 + _MARGIN


def shown(config: TokenizerConfig, decoded_BHWc: Float[Array, "B H W c"]) -> Float[Array, "B H W 3"]:
    """Makes pictures of what the decoder gives, in [-1,1] or a little beyond."""
    if not config.laplace:
        return decoded_BHWc
    middle = jax.nn.sigmoid(decoded_BHWc[..., :3])
    return jnp.clip((middle - _MARGIN) / (1 - 2 * _MARGIN), 0, 1) * 2 - 1


def pixel_loss(
    config: TokenizerConfig, decoded_BHWc: Float[Array, "B H W c"], image_BHW3: Float[Array, "B H W 3"]
) -> Float[Array, ""]:
    """Compares what the decoder gives with pictures in [-1,1], pixel by pixel: the mean absolute difference.

    Of `laplace` the mean of the negative logarithm of a logit-Laplace density, without a constant
    (Ramesh et al., arXiv 2102.12092, appendix A.3).
    """
    if not config.laplace:
        return jnp.mean(jnp.abs(decoded_BHWc - image_BHW3))
    x = seen(config, image_BHW3)
    middle, log_spread = decoded_BHWc[..., :3], decoded_BHWc[..., 3:]
    logit = jnp.log(x) - jnp.log1p(-x)
    error = jnp.abs(logit - middle) * jnp.exp(-log_spread)
    return jnp.mean(error + log_spread + jnp.log(x * (1 - x)))
