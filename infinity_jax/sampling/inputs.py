"""From a request to what calls of the sampler are given, batch by batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from infinity_jax.files.progress import waiting
from infinity_jax.runtime.sharding import Layout
from infinity_jax.sampling.config import SamplerInputs, placed
from infinity_jax.sampling.guidance import Numbers
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.text.encoder import TextEncoder, padded_lengths

_COMPILING = "compiling the sampler, once for each size of picture and batch, and drawing the first pictures"


def in_batches(
    text_encoder: TextEncoder,
    request: SampleRequest,
    only: Sequence[int],
    numbers: Numbers,
    layout: Layout | None,
) -> Iterator[tuple[Sequence[int], SamplerInputs]]:
    """Yields a checked request batch by batch: which of its pictures, and the arguments, where they are drawn."""
    texts = request.texts
    text_length = max(padded_lengths(text_encoder, texts))
    batch = request.batch or len(only)
    for start in range(0, len(only), batch):
        part = only[start : start + batch]
        # Always the same shapes, filled up with copies: one compilation, and a picture's rounding cannot depend on how
        # many others are drawn with it.
        rows = [*part, *[part[-1]] * (batch - len(part))]
        inputs = gathered(text_encoder, request.part(rows), numbers.part(rows), text_length)
        yield part, inputs if layout is None else placed(inputs, layout)


def drawn_in_turn(
    draw: Callable[[SamplerInputs], Any], every: Iterable[tuple[Sequence[int], SamplerInputs]]
) -> Iterator[tuple[Sequence[int], Any]]:
    """Runs a program on batches, each started before the one before is fetched: which pictures, and their arrays."""
    running: tuple[Sequence[int], Any] | None = None
    for part, inputs in every:
        with waiting(_COMPILING):
            drawn = draw(inputs)
        jax.tree.map(lambda x: x.copy_to_host_async(), drawn)
        if running is not None:
            yield _fetched(*running)
        running = part, drawn
    if running is not None:
        yield _fetched(*running)


def _fetched(part: Sequence[int], drawn: Any) -> tuple[Sequence[int], Any]:
    return part, jax.tree.map(lambda x: np.asarray(x)[: len(part)], drawn)


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
