"""The bit classifier: d independent two-way decisions per token instead of one among 2^d (paper section 3.2)."""

import flax.linen as nn
import jax

from infinity_jax.config import TransformerConfig
from infinity_jax.model.layers import ADALN_INIT, Dense, modulate, weight_init

HEAD_INIT = 0.02


class BitHead(nn.Module):
    """AdaLN, then one linear map to 2 logits a bit (class 0 = negative)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BLC: jax.Array, vector_BC: jax.Array) -> jax.Array:
        """Logits float32 [B, L, d, 2]."""
        c = self.config
        axes = ("embed", "adaln", "embed_out")
        init = weight_init(c, ADALN_INIT)
        modulation = Dense((c.width, 2, c.width), axes, init, c.compute_dtype, name="adaln")
        scale_shift = modulation(nn.silu(vector_BC))
        x_BLC = modulate(x_BLC, scale_shift[:, 0], scale_shift[:, 1])
        init = weight_init(c, HEAD_INIT)
        logits = Dense((c.width, 2 * c.bits), ("embed", "bits"), init, c.compute_dtype, name="logits")(x_BLC)
        return logits.reshape(*logits.shape[:-1], c.bits, 2)
