"""The autoregressive transformer: text or a label, and coarser scales, in; logits out (docs/spec.md section 4)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import constrain
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.block import INPUT, Block, Condition
from infinity_jax.transformer.conditions import FLOAT32, ClassCondition, TextCondition
from infinity_jax.transformer.heads import BitHead, IndexHead
from infinity_jax.transformer.layers import LINEAR, Dense, parameter, weight_init

SCALE_ROWS = 15


class Transformer(nn.Module):
    """Predicts the tokens of every scale from the text or a label, and all coarser scales.

    `__call__` is the teacher-forced pass of training. The sampler uses `text_condition`, `start`, `embed` and
    `head` by themselves, and `Block.step` on the parameters under "blocks", which are stacked over layers.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        if c.condition == "text":
            self.text = TextCondition(c)
        else:
            self.label = ClassCondition(c)
        if c.adaln == "shared":
            self.shared_adaln = Dense(
                (c.width, 6, c.width), ("embed", "adaln", "embed_out"), weight_init(c), FLOAT32
            )
        self.start_position = parameter(self, "start_position", weight_init(c), (c.width,), ("embed",))
        # The rows: one for each scale, or one for each of its tokens.
        learned, axes = c.learned_schedule, ("scales", "embed")
        if c.embeds_scales:
            shape = (SCALE_ROWS if learned is None else learned.n_scales, c.width)
            self.scale_embedding = parameter(self, "scale_embedding", weight_init(c), shape, axes)
        if learned is not None:
            shape = (learned.length, c.width)
            self.position_embedding = parameter(self, "position_embedding", weight_init(c), shape, axes)
        self.embed_bits = Dense((c.bits, c.width), ("bits", "embed"), weight_init(c), FLOAT32)
        if c.head == "bits":
            self.bit_head = BitHead(c)
        else:
            self.index_head = IndexHead(c)

    @nn.compact
    def __call__(
        self,
        inputs_BLd: Float[Array, "B L_minus_1 d"],
        text_BTC: Float[Array, "B T C"],
        text_mask_BT: Bool[Array, "B T"],
        schedule: ScaleSchedule,
        drop_caption_B: Bool[Array, "B"] | None = None,
        path_factors_N2B: Float[Array, "N 2 B"] | None = None,
    ) -> Float[Array, "B L d 2"] | Float[Array, "B L V"]:
        """Computes the logits of all scales at once.

        Args:
          inputs_BLd: float32, the inputs of scales 2..K: resized running sums, row by row, one scale after the other.
          text_BTC: float32 features of the text encoder, of captions or of labels (`text/labels.py`).
          text_mask_BT: True on tokens that exist, which are the first of each text.
          schedule: static.
          drop_caption_B: pictures whose caption is replaced by the learned empty one (for guidance).
          path_factors_N2B: stochastic depth of each layer, from `draw_path_factors`; None is none.
        Returns:
          float32 logits; class 1 of the last axis means the bit is set. With head "index": one for each of V indices
          (2^d of `tokenizer.indices`, or numbers of codes).
        Raises:
          UserError: the inputs do not fit the schedule, the schedule has more than 15 scales or is not that of learned
            positions, or captions are dropped and the text is longer than `text_length`.
        """
        c = self.config
        if inputs_BLd.shape[1:] != (schedule.length - 1, c.bits):
            raise UserError(
                f"transformer inputs have shape {inputs_BLd.shape}; this schedule and model need "
                f"[B, {schedule.length - 1}, {c.bits}] (all scales but the first)"
            )
        if schedule.n_scales > SCALE_ROWS:
            raise UserError(
                f"the schedule has {schedule.n_scales} scales; the model has room for {SCALE_ROWS}"
            )
        c.check_schedule(schedule)
        if drop_caption_B is not None:
            empty_TC = self.empty_caption(text_BTC.shape[1])
            text_BTC = jnp.where(drop_caption_B[:, None, None], empty_TC, text_BTC)
        condition = self.text_condition(text_BTC, text_mask_BT)
        x_BLC = jnp.concatenate([self.start(condition), self.embed_bits(inputs_BLd)], 1)
        if c.embeds_scales:
            x_BLC += self.scale_embedding[jnp.asarray(schedule.scale_of_token)]
        if c.learned_schedule is not None:
            x_BLC += self.position_embedding[: schedule.length]
        x_BLC = constrain(x_BLC, "batch", "tokens", None)
        blocks = nn.scan(
            _rematerialised(c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=c.layers,
            unroll=1 if c.scan_layers else c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, schedule, name="blocks")
        x_BLC, _ = blocks(x_BLC, path_factors_N2B, condition)
        return self.head(x_BLC, condition)

    def text_condition(self, text_BTC: jax.Array, text_mask_BT: jax.Array) -> Condition:
        """Computes what blocks and head read of the text [B, T, channels], or [1, T, channels] for all masks [B, T]."""
        vector_BC, context_BTC = self._reader(text_BTC, text_mask_BT)
        vector_BC, adaln_B6C = constrain(vector_BC, "batch", None), None
        if context_BTC is not None:
            context_BTC = constrain(context_BTC, "batch", None, None)
        if self.config.adaln == "shared":
            adaln_B6C = constrain(self.shared_adaln(nn.silu(vector_BC)), "batch", None, None)
        return Condition(vector_BC, adaln_B6C, context_BTC, text_mask_BT)

    @property
    def _reader(self) -> TextCondition | ClassCondition:
        return self.text if self.config.condition == "text" else self.label

    def empty_caption(self, length: int) -> jax.Array:
        """Returns the learned features of an absent caption, float32 [length, text_channels]."""
        return self._reader.empty(length)

    def start(self, condition: Condition) -> jax.Array:
        """Makes <SOS>, the first scale's only input, float32 [B, 1, C], without the embedding of scale or position."""
        return (condition.vector_BC + self.start_position)[:, None]

    def embed(self, condition: Condition, inputs_BNd: jax.Array | None, scale: int) -> jax.Array:
        """Makes the residual stream float32 [B, N, C] before the first block, of the scale with number `scale`.

        Args:
          inputs_BNd: float32, the resized running sum; None for the first scale.
        """
        tokens = self.start(condition) if inputs_BNd is None else self.embed_bits(inputs_BNd)
        learned = self.config.learned_schedule
        if self.config.embeds_scales:
            tokens += self.scale_embedding[scale]
        if learned is None:
            return tokens
        start, end = learned.offsets[scale : scale + 2]
        return tokens + self.position_embedding[start:end]

    def head(self, x_BNC: jax.Array, condition: Condition) -> jax.Array:
        """Computes logits float32 [B, N, d, 2], or [B, N, V] of indices, from the last block's output."""
        head = self.bit_head if self.config.head == "bits" else self.index_head
        return head(x_BNC, condition.vector_BC)


def _rematerialised(policy: str) -> Any:
    """Wraps `Block` with what its backward pass computes again; names as in `TransformerConfig.remat`."""
    policies = jax.checkpoint_policies
    if policy == "none":
        return Block
    saved = {
        "block": None,
        "dots": policies.save_only_these_names(LINEAR),
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }
    return nn.remat(Block, prevent_cse=False, policy=saved[policy])


def draw_path_factors(config: TransformerConfig, key: Key[Array, ""], batch: int) -> Float[Array, "N 2 B"]:
    """Draws a batch's stochastic depth: 0 where a picture skips a layer's update, else 1 / (1 - rate).

    Axis 1: self-attention, feed-forward layer. The rate grows linearly from 0 to `drop_path` (docs/spec.md section 4).
    """
    kept_N = 1 - jnp.linspace(0.0, config.drop_path, config.layers)[:, None, None]
    return jax.random.bernoulli(key, kept_N, (config.layers, 2, batch)) / kept_N


def init_params(config: TransformerConfig, key: Key[Array, ""], schedule: ScaleSchedule) -> Any:
    """Draws fresh parameters, a nested dict of float32 arrays, without their logical axis names."""
    # One compiled program: drawing every array by itself takes several times as long.
    return jax.jit(lambda key: nn.meta.unbox(init_variables(config, key, schedule)["params"]))(key)


def init_variables(config: TransformerConfig, key: Key[Array, ""], schedule: ScaleSchedule) -> Any:
    """Draws fresh variables with logical axis names attached; under `jax.eval_shape` only their shapes."""
    inputs = jnp.zeros((1, schedule.length - 1, config.bits))
    text, mask = jnp.zeros((1, 1, config.text_channels)), jnp.ones((1, 1), bool)
    return Transformer(config).init(key, inputs, text, mask, schedule, jnp.zeros((1,), bool))
