"""Transformer parameters of ordinary size: fresh ones hardly depend on anything, and take long to draw."""

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TransformerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.transformer import init_params


def arbitrary_params(config: TransformerConfig, schedule: ScaleSchedule):
    """float32 parameters of `Transformer(config)` from NumPy's random numbers."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0), schedule))
    random = np.random.default_rng(0)

    def draw(path, shape):
        centre = 1.0 if path[-1].key.endswith("scale") else 0.0
        return jnp.asarray(centre + 0.1 * random.standard_normal(shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
