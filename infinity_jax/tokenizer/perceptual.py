"""The feature loss of the tokenizer: a distance between pictures in the early layers of EfficientNet-Lite0.

In the manner of LPIPS (Zhang et al., arXiv 1801.03924, equation 1) with fixed instead of learned layer weights.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infinity_jax.metrics.efficientnet import EfficientNetLite0

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
