"""The batches of one request: each is started before the one before it is fetched."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from infinity_jax.runtime.sharding import Layout
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs, placed
from infinity_jax.sampling.guidance import ScaleSettings
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.sampling.sampler import make_sampler
from infinity_jax.text.batching import bucket_length
from infinity_jax.text.encoder import TextEncoder

# Texts are padded to this length at least: a few tokens more cost nothing beside the picture's, and there are fewer
# lengths to compile for.
_SHORTEST_TEXT = 32


class Trained(NamedTuple):
    """What draws: the text encoder, the weights of the transformer and of the tokenizer, and the mesh they lie on.

    Without a layout they lie on the default device.
    """

    text_encoder: TextEncoder
    params: Any
    tokenizer_params: Any
    layout: Layout | None


def batches(
    request: SampleRequest, batch: int, config: SamplerConfig, settings: ScaleSettings, trained: Trained
) -> Iterator[tuple[range, UInt8[np.ndarray, "n H W 3"]]]:
    """Draws a request batch by batch; yields which of its N pictures, and uint8 [n,H,W,3].

    When one is handed out the next is already started, text encoding included; there are never more than two.

    Args:
      request: checked.
      batch: pictures in a batch.
      config: what is compiled.
      settings: of each scale.
    """
    text_encoder, params, tokenizer_params, layout = trained
    draw = make_sampler(config, layout)
    text_length = padded_length(text_encoder, [*request.prompts, *(request.negative_prompts or [])])
    running: tuple[range, jax.Array] | None = None
    for start in range(0, len(request.prompts), batch):
        part = range(start, min(start + batch, len(request.prompts)))
        # Always the same shapes, filled up with copies: one compilation, and a picture's rounding
        # cannot depend on how many others are drawn with it.
        rows = [*part, *[part[-1]] * (batch - len(part))]
        inputs = _inputs(request, rows, settings, text_encoder, text_length)
        images = draw(params, tokenizer_params, inputs if layout is None else placed(inputs, layout))
        images.copy_to_host_async()
        if running is not None:
            yield _fetched(*running)
        running = part, images
    if running is not None:
        yield _fetched(*running)


def padded_length(text_encoder: TextEncoder, texts: Sequence[str]) -> int:
    """Returns the one length that all texts of a request are padded to: 32, 64, ... or the encoder's longest."""
    return max(padded_lengths(text_encoder, texts))


def padded_lengths(text_encoder: TextEncoder, texts: Sequence[str]) -> list[int]:
    """Returns the length that each text would be padded to in a request of its own."""
    counts = text_encoder.token_counts(texts)
    return [bucket_length(max(int(n), _SHORTEST_TEXT), text_encoder.max_length) for n in counts]


def _fetched(part: range, images: Any) -> tuple[range, np.ndarray]:
    return part, np.asarray(images)[: len(part)]


def _inputs(
    request: SampleRequest,
    rows: Sequence[int],
    settings: ScaleSettings,
    text_encoder: TextEncoder,
    text_length: int,
) -> SamplerInputs:
    """Gathers a batch's arguments in the host's memory: the sampler moves them, without waiting for what runs."""
    negative = (None, None)
    if request.negative_prompts is not None:
        negative = _text([request.negative_prompts[i] for i in rows], text_encoder, text_length)
    arrays: Any = (
        *_text([request.prompts[i] for i in rows], text_encoder, text_length),
        np.asarray([request.seeds[i] for i in rows], np.uint32),
        *settings,
        *negative,
    )
    return SamplerInputs(*arrays)


def _text(
    texts: Sequence[str], text_encoder: TextEncoder, length: int
) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
    """Encodes texts: features and mask with T = `length`, at least that of the longest text."""
    features_BTC, mask_BT = text_encoder.encode(texts)
    missing = length - mask_BT.shape[1]
    return np.pad(features_BTC, ((0, 0), (0, missing), (0, 0))), np.pad(mask_BT, ((0, 0), (0, missing)))
