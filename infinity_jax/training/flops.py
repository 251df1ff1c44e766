"""Parameters and FLOP of the models by formula: what the model needs, whatever a compiler makes of it.

A multiplication and an addition are 2 FLOP. Only products of matrices are counted, and in the attention only pairs
that see each other; norms, softmax and the optimiser are small beside them.
"""

import dataclasses
import functools
import itertools
import math

import jax

from infinity_jax.checkpoints.trained import tokenizer_shapes, transformer_shapes
from infinity_jax.config import VIT, TokenizerConfig, TransformerConfig, UpscalerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.autoencoder import decoder_layers


@dataclasses.dataclass(frozen=True)
class ForwardFlops:
    """FLOP of one picture's forward pass through all layers.

    Attributes:
      block_products: the linear maps of the blocks that run on picture tokens.
      self_attention: both products of the attention among picture tokens, visible pairs only.
      cross_attention: both products of the attention to the text.
      text: maps of the text: pool, cross-attention's keys and values, condition vector and AdaLN.
      embedding: bits to width.
      head: width to logits.
    """

    block_products: int
    self_attention: int
    cross_attention: int
    text: int
    embedding: int
    head: int

    @property
    def total(self) -> int:
        """Adds all of them up."""
        return sum(dataclasses.astuple(self))


@functools.cache
def parameter_count(config: TransformerConfig) -> int:
    """Counts the transformer's parameters by the shapes of its arrays; none is made."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(transformer_shapes(config)))


def visible_pairs(schedule: ScaleSchedule) -> int:
    """Counts (query, key) pairs of one picture where the query sees the key: its own and earlier scales."""
    return sum(n * end for n, end in zip(schedule.tokens, schedule.offsets[1:], strict=True))


def forward_flops(config: TransformerConfig, schedule: ScaleSchedule, text_tokens: int) -> ForwardFlops:
    """Counts the FLOP of one picture, teacher-forced or sampled with a cache (the numbers are the same).

    Args:
      text_tokens: tokens of the caption, padding included: a compiled program computes it all the same.
    """
    width, layers, length = config.width, config.layers, schedule.length
    square = width * width
    # Query, key, value and output map of the self-attention, query and output map of the cross-attention.
    per_token = (6 if config.condition == "text" else 4) * square + 2 * width * config.ffn_width
    pool = context = keys_values = 0
    if config.condition == "text":
        pool = 2 * text_tokens * config.text_channels * width + 2 * text_tokens * width + square
        context = text_tokens * (config.text_channels * width + square)
        keys_values = layers * 2 * text_tokens * square
    else:
        text_tokens = 0  # a label is looked up
    # The blocks' shared map, or each block's own, and the head's.
    adaln = (6 * (layers if config.adaln == "own" else 1) + 2) * square
    return ForwardFlops(
        block_products=2 * layers * length * per_token,
        self_attention=2 * layers * 2 * width * visible_pairs(schedule),
        cross_attention=2 * layers * 2 * width * length * text_tokens,
        text=2 * (pool + context + keys_values + adaln),
        embedding=2 * (length - 1) * config.bits * width,
        head=2 * length * width * config.head_logits,
    )


def train_flops(config: TransformerConfig, schedule: ScaleSchedule, text_tokens: int) -> int:
    """Counts the FLOP of one picture in a train step: backward there are two products for each of the forward pass."""
    return 3 * forward_flops(config, schedule, text_tokens).total


def decoder_flops(config: TokenizerConfig, size: tuple[int, int]) -> int:
    """Counts the FLOP of the tokenizer's decoder for one picture: kernels at all places of a level, edges included.

    After a doubling of the size a kernel has four products a result instead of nine.

    Args:
      size: (height, width) in tokens of the tokenizer.
    """
    if config.architecture == VIT:
        return _vit_flops(config, "decoder", size)
    whole, places = tokenizer_shapes(config), math.prod(size)
    params, total = whole["decoder"], _latent_flops(config, size)
    for layer in decoder_layers(config):
        if layer.kind == "attention":
            total += _attention_flops(layer.width, places)
        kernels = [leaf for leaf in jax.tree.leaves(params[layer.name]) if leaf.ndim == 4]
        of_a_place = sum(2 * math.prod(kernel.shape) for kernel in kernels) * 4**layer.doublings
        total += places * (of_a_place * 4 // 9 if layer.kind == "upsample" else of_a_place)
    return total


def encoder_flops(config: TokenizerConfig, size: tuple[int, int]) -> int:
    """Counts the FLOP of the tokenizer's encoder for one picture, as `decoder_flops` does.

    Args:
      size: (height, width) in tokens of the tokenizer.
    """
    if config.architecture == VIT:
        return _vit_flops(config, "encoder", size)
    params = tokenizer_shapes(config)["encoder"]
    coarsest, total = len(config.encoder_widths) - 1, _latent_flops(config, size)
    if config.attention:
        total += (1 + config.encoder_blocks) * _attention_flops(config.encoder_widths[-1], math.prod(size))
    for path, kernel in jax.tree_util.tree_leaves_with_path(params):
        if kernel.ndim != 4:
            continue
        # "down_LEVEL_..." runs at that level, and what halves it gives the places of the next; the rest is coarsest.
        layer = path[0].key
        halvings = 0 if layer == "conv_in" else coarsest
        if layer.startswith("down_"):
            halvings = int(layer.split("_")[1]) + layer.endswith("downsample")
        total += 2 * math.prod(kernel.shape) * math.prod(size) * 4 ** (coarsest - halvings)
    return total


def _vit_flops(config: TokenizerConfig, half: str, size: tuple[int, int]) -> int:
    """Counts a ViT's linear maps, of which there is one for each token, and the products of its attention."""
    width = config.encoder_widths[0] if half == "encoder" else config.decoder_widths[0]
    layers = config.encoder_blocks if half == "encoder" else config.decoder_blocks
    leaves = jax.tree_util.tree_leaves_with_path(tokenizer_shapes(config)[half])
    kernels = sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key == "kernel")
    places = math.prod(size)
    return 2 * kernels * places + layers * _attention_flops(width, places)


def _attention_flops(width: int, places: int) -> int:
    """Counts both products of an attention block over so many places; its linear maps are kernels like others."""
    return 2 * 2 * places * places * width


def _latent_flops(config: TokenizerConfig, size: tuple[int, int]) -> int:
    """Counts one of the convolutions around the quantiser."""
    return 2 * (config.latent_kernel * config.bits) ** 2 * math.prod(size)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one train step works on and computes by formula, all devices together.

    Attributes:
      tokens: of pictures.
      model_flops: of the transformer, forward and backward: what no program can do without.
      hardware_flops: besides that, what the backward pass computes again (remat), and the encoders of captions and of
        pictures where they run within the step's time.
    """

    tokens: int
    model_flops: int
    hardware_flops: int


def step_cost(
    config: TransformerConfig,
    schedule: ScaleSchedule,
    text_tokens: int,
    batch: int,
    encoders: int = 0,
) -> StepCost:
    """Counts a train step of the transformer.

    Args:
      text_tokens: tokens of a caption, padding included.
      batch: pictures, all of one schedule.
      encoders: FLOP that text encoder and tokenizer need for one of them.
    """
    forward = forward_flops(config, schedule, text_tokens)
    again = 0
    if config.remat in ("block", "offload"):  # "dots" keeps the results of linear maps
        again = forward.block_products + forward.self_attention + forward.cross_attention
    if config.remat == "dots":
        again = forward.self_attention + forward.cross_attention
    return StepCost(
        tokens=batch * schedule.length,
        model_flops=batch * train_flops(config, schedule, text_tokens),
        hardware_flops=batch * (train_flops(config, schedule, text_tokens) + again + encoders),
    )


def upscaler_flops(config: UpscalerConfig) -> int:
    """Counts the FLOP of an upscaler's network for one picture, forward: products and convolutions, edges included."""
    places, total = config.side**2, 0
    channels = (config.bits, *config.extractor, config.bits)
    for before, after in itertools.pairwise(channels):
        total += 2 * 9 * places * before * after
    for size, width, layers in zip(config.sizes, config.widths, config.layers, strict=True):
        tokens, half = size**2, width // 2
        total += 2 * 9 * places * half * (config.bits + width)
        total += layers * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)
        total += 2 * tokens * half * (width + config.bits)
    return total


def tokenizer_train_flops(config: TokenizerConfig, size: tuple[int, int]) -> int:
    """Counts the FLOP of one picture of `size` tokens in a train step of the tokenizer, without the loss's networks."""
    return 3 * (encoder_flops(config, size) + decoder_flops(config, size))
