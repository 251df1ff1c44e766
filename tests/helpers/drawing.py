"""Arguments of the sampler whose settings are the same for all pictures."""

from typing import Any

import jax
import jax.numpy as jnp

from infinity_jax.sampling.bits import DrawSettings
from infinity_jax.sampling.config import SamplerInputs


def draw_settings(seeds, tau: Any = 1.0, top_p: Any = 1.0, scale: int = 0) -> DrawSettings:
    """How the bits of one scale are drawn; tau and top_p are for all pictures, or one for each."""
    tau_B, top_p_B = (jnp.full(len(seeds), jnp.asarray(x), jnp.float32) for x in (tau, top_p))
    return DrawSettings(jnp.asarray(seeds, jnp.uint32), tau_B, top_p_B, scale)


def for_all(settings_K, pictures: int) -> jax.Array:
    """A setting of each scale, for every picture: float32 [B,K]."""
    return jnp.tile(jnp.asarray(settings_K, jnp.float32), (pictures, 1))


def sampler_inputs(text, mask, seeds, cfg_K, tau_K, top_p=1.0) -> SamplerInputs:
    """Arguments of a batch with the learned empty caption."""
    batch = len(seeds)
    return SamplerInputs(
        jnp.asarray(text), jnp.asarray(mask), jnp.asarray(seeds, jnp.uint32),
        for_all(cfg_K, batch), for_all(tau_K, batch), jnp.full(batch, top_p, jnp.float32),
    )  # fmt: skip
