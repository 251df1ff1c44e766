"""The batches of one call of the pipeline: each is started before the one before it is fetched."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from infinity_jax.runtime.sharding import Layout
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs, placed
from infinity_jax.sampling.sampler import make_sampler
from infinity_jax.text.batching import bucket_length
from infinity_jax.text.encoder import TextEncoder

# Texts are padded to this length at least: a few tokens more cost nothing beside the picture's, and there are fewer
# lengths to compile for.
_SHORTEST_TEXT = 32


@dataclasses.dataclass(frozen=True)
class Call:
    """What is drawn, and what its batches share.

    Attributes:
      prompts, seeds: N of each.
      negative_prompts: N texts; None = the learned empty caption.
      rows: pictures in a batch.
      config: what is compiled.
      cfg_K, tau_K: float32, guidance and temperature of each scale.
      top_p: a bit value with probability <= 1 - top_p is never drawn.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    negative_prompts: Sequence[str] | None
    rows: int
    config: SamplerConfig
    cfg_K: np.ndarray
    tau_K: np.ndarray
    top_p: float


def batches(
    call: Call, text_encoder: TextEncoder, params: Any, tokenizer_params: Any, layout: Layout | None
) -> Iterator[tuple[range, UInt8[np.ndarray, "n H W 3"]]]:
    """The pictures of a call batch by batch: which of the N, and uint8 [n,H,W,3].

    When one is handed out the next is already started, text encoding included; there are never more than two.

    Args:
      params, tokenizer_params: weights of the transformer and of the tokenizer.
      layout: the mesh they lie on; None is the default device.
    """
    draw = make_sampler(call.config, layout)
    text_length = padded_length(text_encoder, [*call.prompts, *(call.negative_prompts or [])])
    running: tuple[range, jax.Array] | None = None
    for start in range(0, len(call.prompts), call.rows):
        part = range(start, min(start + call.rows, len(call.prompts)))
        inputs = _inputs(call, part, text_encoder, text_length)
        images = draw(params, tokenizer_params, inputs if layout is None else placed(inputs, layout))
        images.copy_to_host_async()
        if running is not None:
            yield _fetched(*running)
        running = part, images
    if running is not None:
        yield _fetched(*running)


def padded_length(text_encoder: TextEncoder, texts: Sequence[str]) -> int:
    """The one length that all texts of a call are padded to: 32, 64, ... or the encoder's longest."""
    return max(padded_lengths(text_encoder, texts))


def padded_lengths(text_encoder: TextEncoder, texts: Sequence[str]) -> list[int]:
    """The length that each text would be padded to in a call of its own."""
    counts = text_encoder.token_counts(texts)
    return [bucket_length(max(int(n), _SHORTEST_TEXT), text_encoder.max_length) for n in counts]


def _fetched(part: range, images: Any) -> tuple[range, np.ndarray]:
    return part, np.asarray(images)[: len(part)]


def _inputs(call: Call, part: range, text_encoder: TextEncoder, text_length: int) -> SamplerInputs:
    """A batch's arguments, in the host's memory: the call that draws moves them, without waiting for what runs."""
    # Always the same shapes, filled up with copies: one compilation, and a picture's rounding
    # cannot depend on how many others are drawn with it.
    chosen = [*part, *[part[-1]] * (call.rows - len(part))]
    negative = (None, None)
    if call.negative_prompts is not None:
        negative = _text([call.negative_prompts[i] for i in chosen], text_encoder, text_length)
    arrays: Any = (
        *_text([call.prompts[i] for i in chosen], text_encoder, text_length),
        np.asarray([call.seeds[i] for i in chosen], np.uint32),
        call.cfg_K,
        call.tau_K,
        np.float32(call.top_p),
        *negative,
    )
    return SamplerInputs(*arrays)


def _text(
    texts: Sequence[str], text_encoder: TextEncoder, length: int
) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
    """Features and mask with T = `length`, at least that of the longest text."""
    features_BTC, mask_BT = text_encoder.encode(texts)
    missing = length - mask_BT.shape[1]
    return np.pad(features_BTC, ((0, 0), (0, missing), (0, 0))), np.pad(mask_BT, ((0, 0), (0, missing)))
