"""A batch's request as arrays of the host: what one call of the sampler is given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from infinity_jax.sampling.config import SamplerInputs
from infinity_jax.sampling.guidance import Numbers
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.text.encoder import TextEncoder


def gathered(
    text_encoder: TextEncoder, request: SampleRequest, numbers: Numbers, text_length: int
) -> SamplerInputs:
    """Gathers a batch's arguments in the host's memory: the sampler moves them, without waiting for what runs.

    Args:
      text_length: to which texts are padded, at least that of the longest.
    """
    seeds_B, negative = np.asarray(request.seeds, np.uint32), (None, None)
    if request.negative_prompts is not None:
        negative = _text(text_encoder, request.negative_prompts, text_length)
    prompts = _text(text_encoder, request.prompts, text_length)
    arrays: Any = (*prompts, seeds_B, *numbers, *negative, request.given)
    return SamplerInputs(*arrays)


def _text(
    text_encoder: TextEncoder, texts: Sequence[str], length: int
) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
    features_BTC, mask_BT = text_encoder.encode(texts)
    missing = length - mask_BT.shape[1]
    return np.pad(features_BTC, ((0, 0), (0, missing), (0, 0))), np.pad(mask_BT, ((0, 0), (0, missing)))
