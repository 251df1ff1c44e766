"""Pictures as they come: after each scale what is drawn so far, coarse to fine, and the finished ones at the end.

Each scale is a program of its own, which takes the state of the one before and gives its memory on. The parts are those
of `sampler.py`, and so are the pictures.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from infinity_jax.config import VIT
from infinity_jax.runtime.sharding import Layout
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.sampling.prepared import prepare
from infinity_jax.sampling.sampler import compiler_options, draw_scale, empty_state, pictures_of
from infinity_jax.tokenizer import resize

SIZES = ("full", "scale")


class Preview(NamedTuple):
    """Pictures at one stage.

    Attributes:
      scale: number of the last scale that is in them, from 0.
      images: uint8 [N,H,W,3], or smaller ones of earlier scales where they are shown at their own size.
      is_final: they are finished: the same as of the other way to draw them.
    """

    scale: int
    images: UInt8[np.ndarray, "N H W 3"]
    is_final: bool


class Programs(NamedTuple):
    """The jitted parts: of the text; of each scale; from the state to pictures, by the number of the scale."""

    start: Callable[[Any, Any, SamplerInputs], Any]
    scale: Callable[..., Any]
    show: Callable[..., jax.Array]


@functools.lru_cache(maxsize=32)
def programs_of(config: SamplerConfig, layout: Layout | None) -> Programs:
    """Makes the programs that draw scale by scale; the state that a scale is given is used up."""

    def start(params: Any, tokenizer_params: Any, inputs: SamplerInputs) -> Any:
        prepared = prepare(config, params, inputs, config.quantizer(tokenizer_params))
        return prepared, empty_state(config, len(inputs.seeds_B))

    def scale(params: Any, inputs: SamplerInputs, prepared: Any, state: Any, k: int) -> Any:
        return draw_scale(config, params, inputs, prepared, state, k)[1]

    def show(tokenizer_params: Any, running_sum_BHWd: jax.Array, size: tuple[int, int]) -> jax.Array:
        return pictures_of(config, tokenizer_params, resize.area(running_sum_BHWd, size))

    traced = layout.traced if layout is not None else lambda function: function
    options: dict[str, Any] = {"compiler_options": compiler_options(layout)}
    shown: dict[str, Any] = {} if layout is None else {"out_shardings": layout.replicated}
    return Programs(
        jax.jit(traced(start), **options),
        jax.jit(traced(scale), static_argnums=4, donate_argnums=3, **options),
        jax.jit(traced(show), static_argnums=2, **options, **shown),
    )


def previews(
    config: SamplerConfig,
    layout: Layout | None,
    params: Any,
    tokenizer_params: Any,
    inputs: SamplerInputs,
    size: str,
) -> Iterator[Preview]:
    """Draws a batch scale by scale, and shows it after each: the next scale is started before a preview is fetched.

    Args:
      params: `sampler.rounded`.
      size: "full" decodes each preview at the pictures' size; "scale" at that of the scale, for a fraction of the work.
        A ViT's are always full.
    """
    programs = programs_of(config, layout)
    schedule = config.schedule.times(config.tokenizer.patchify)
    prepared, state = programs.start(params, tokenizer_params, inputs)
    last, waiting = config.drawn_scales[-1], None
    for k in config.drawn_scales:
        state = programs.scale(params, inputs, prepared, state, k)
        own = size == "full" or config.tokenizer.architecture == VIT
        shown = schedule.last if own or k == last else schedule.sizes[k]
        images = programs.show(tokenizer_params, state.running_sum_BHWd, shown)
        images.copy_to_host_async()
        if waiting is not None:
            yield Preview(waiting[0], np.asarray(waiting[1]), False)
        waiting = k, images
    assert waiting is not None
    yield Preview(waiting[0], np.asarray(waiting[1]), True)


def of_batches(
    config: SamplerConfig,
    layout: Layout | None,
    weights: tuple[Any, Any],
    every: Iterable[tuple[Sequence[int], SamplerInputs]],
    size: str,
) -> Iterator[tuple[Sequence[int], Preview]]:
    """Draws batches one after the other, each as `previews`: which pictures, and how far they are.

    Args:
      weights: parameters of the transformer, `sampler.rounded`, and of the tokenizer.
      every: those of `inputs.in_batches`, which may be filled up.
    """
    for part, inputs in every:
        for preview in previews(config, layout, *weights, inputs, size):
            yield part, preview._replace(images=preview.images[: len(part)])
