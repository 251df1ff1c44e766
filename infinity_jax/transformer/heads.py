"""The classifiers of a token: d independent two-way decisions, or one among 2^d (paper section 3.2)."""

import flax.linen as nn
import jax

from infinity_jax.config import TransformerConfig
from infinity_jax.runtime.sharding import constrain
from infinity_jax.transformer.layers import ADALN_INIT, Dense, modulate, weight_init

HEAD_INIT = 0.02


class BitHead(nn.Module):
    """AdaLN, then one linear map to 2 logits a bit (class 0 = negative).

    `__call__` is for training; the sampler reads `modulation` and the parameters of `logits`.
    """

    config: TransformerConfig
    logits_axis: str = "bits"

    def setup(self):
        c = self.config
        adaln_axes = ("embed", "adaln", "embed_out")
        self.adaln = Dense((c.width, 2, c.width), adaln_axes, weight_init(c, ADALN_INIT), c.compute_dtype)
        self.logits = Dense(
            (c.width, c.head_logits),
            ("embed", self.logits_axis),
            weight_init(c, HEAD_INIT),
            c.compute_dtype,
            whole=True,  # the sampler reads it
        )

    def __call__(self, x_BLC: jax.Array, vector_BC: jax.Array) -> jax.Array:
        """Logits float32 [B, L, d, 2]."""
        logits = self.flat_logits(x_BLC, vector_BC)
        return logits.reshape(*logits.shape[:-1], self.config.bits, 2)

    def flat_logits(self, x_BLC: jax.Array, vector_BC: jax.Array) -> jax.Array:
        """Computes all logits of a token in one axis, float32 [B, L, logits]."""
        scale_shift = self.modulation(vector_BC)
        return self.logits(modulate(x_BLC, scale_shift[:, 0], scale_shift[:, 1]))

    def modulation(self, vector_BC: jax.Array) -> jax.Array:
        """Computes scale and shift of the norm, float32 [B, 2, C]."""
        return self.adaln(nn.silu(vector_BC))


class IndexHead(BitHead):
    """A `BitHead` with one logit for each of the 2^d indices of a token (paper Table 5): the baseline."""

    logits_axis: str = "indices"

    def __call__(self, x_BLC: jax.Array, vector_BC: jax.Array) -> jax.Array:
        """Logits float32 [B, L, 2^d]."""
        return constrain(self.flat_logits(x_BLC, vector_BC), "batch", "tokens", "indices")
