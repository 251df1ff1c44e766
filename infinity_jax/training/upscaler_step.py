"""One training step of an upscaler (NSARM): stage 1 trains the network alone, stage 2 it and the transformer."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from infinity_jax.checkpoints.upscaler_run import NETWORK, TRANSFORMER
from infinity_jax.config import TokenizerConfig, TransformerConfig, UpscalerConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime import seeds
from infinity_jax.runtime.sharding import Layout
from infinity_jax.scales import ScaleSchedule, make_schedule
from infinity_jax.tokenizer.bsq import BinaryQuantizer
from infinity_jax.training import correction, upscaler_losses
from infinity_jax.training import state as train_state
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig, make_optimiser
from infinity_jax.training.state import StepFunction, TrainStep
from infinity_jax.training.transformer_step import LossConfig, draw_examples, mean_over_parts, not_a_kernel
from infinity_jax.transformer.transformer import Transformer, init_variables
from infinity_jax.upscaler.network import UpscalerNetwork, initial_variables, problem_with

STAGES = (1, 2)


@dataclasses.dataclass(frozen=True)
class UpscalerStepConfig:
    """What a train step of an upscaler is made of.

    Attributes:
      stage: 1 trains the network by the squared error of the first scales' residuals; 2 it and the transformer by the
        cross-entropy of the later scales' bits.
      upscaler, model, tokenizer: the network's, the transformer's and the tokenizer's.
      schedule: the transformer's.
      correction: flips of the given scales, in stage 2.
      steps: length of the run, which the learning rate's schedule follows.
      microbatches: see `transformer_step.StepConfig`.
    """

    stage: int
    upscaler: UpscalerConfig
    model: TransformerConfig
    tokenizer: TokenizerConfig
    schedule: ScaleSchedule
    correction: CorrectionConfig
    loss: LossConfig
    optim: OptimConfig
    steps: int
    microbatches: int = 1

    def __post_init__(self):
        """Raises UserError where the parts do not belong together."""
        if self.stage not in STAGES:
            raise UserError(f"stage is {self.stage!r}; use 1 (the network alone) or 2 (with the transformer)")
        if problem := problem_with(self.upscaler, self.tokenizer, self.model.head, self.schedule):
            raise UserError(f"{problem}; change the section upscaler, data.scales or the system")

    @functools.cached_property
    def optimiser(self) -> optax.GradientTransformation:
        """AdamW on all parameters, decaying only the linear maps and convolutions."""
        return make_optimiser(self.optim, self.steps, no_decay=not_a_kernel)

    @property
    def given_scales(self) -> int:
        """How many scales the network gives."""
        return len(self.upscaler.sizes)


def step_config(
    sections: Mapping[str, Any],
    stage: int,
    system: tuple[TransformerConfig, TokenizerConfig],
    steps: int,
    microbatches: int,
) -> UpscalerStepConfig:
    """Gathers what the step is made of from a config's sections, as `sections.read` gives them.

    Raises:
      UserError: the parts do not belong together.
    """
    return UpscalerStepConfig(
        stage,
        sections["upscaler"],
        *system,
        make_schedule(sections["data"].scales),
        sections["correction"],
        sections["loss"],
        sections["optim"],
        steps,
        microbatches,
    )


def build_step(config: UpscalerStepConfig, layout: Layout, seed: int = 0) -> TrainStep:
    """Builds the step of `infinity-jax train-upscaler`; of stage 2 the state has the transformer's parameters too."""

    def variables() -> PyTree:
        made = {NETWORK: initial_variables(config.upscaler, seed)}
        if config.stage == 2:
            made[TRANSFORMER] = init_variables(config.model, jax.random.key(seed), config.schedule)["params"]
        return made

    new_state, shardings = train_state.new_state(
        variables, config.optimiser, config.optim.ema_decay > 0, layout
    )
    return TrainStep(make_train_step(config), new_state, shardings, layout)


def make_train_step(config: UpscalerStepConfig) -> StepFunction:
    """Makes the step (state, batch, key) -> (state, metrics), to be jitted.

    The batch holds `features` float32 [B,H,W,d] and `low_features` float32 [B,S,S,d] of the tokenizer, of the true and
    of the low-quality pictures; for stage 2 `text` float [B,T,C] and `text_mask` bool [B,T].
    """
    gradient_fn = jax.value_and_grad(make_loss(config), has_aux=True)

    def train_step(state, batch, key):
        examples = {**batch, **_draws(config, key, state.step, len(batch["features"]))}
        (loss, metrics), grads = mean_over_parts(gradient_fn, state.params, examples, config.microbatches)
        metrics = {"loss": loss, **metrics, "gradient_norm": optax.tree.norm(grads)}
        return train_state.apply_gradients(state, grads, config.optimiser, config.optim.ema_decay), metrics

    return train_step


def _draws(config: UpscalerStepConfig, key: Array, step: Any, batch: int) -> dict[str, Any]:
    """Draws a step's dropout seeds uint32 [B], and for stage 2 flips, dropped captions and paths."""
    dropout = jax.random.bits(seeds.stream(key, "upscaler dropout", step), (batch,), jnp.uint32)
    drawn: dict[str, Any] = {"dropout": dropout}
    if config.stage == 2:
        drawn |= draw_examples(key, step, batch, config.model, config.loss)
        flipped = min(config.correction.scales, config.given_scales) if config.correction.p else 0
        if flipped:
            sizes = config.schedule.times(config.tokenizer.patchify)
            first = ScaleSchedule(sizes.sizes[:flipped], sizes.last)
            of_step = seeds.stream(key, "flip bits", step)
            drawn["flips"] = correction.draw_flips(
                of_step, first, batch, config.tokenizer.bits, config.correction
            )
    return drawn


def make_loss(
    config: UpscalerStepConfig, train: bool = True
) -> Callable[[PyTree, dict[str, Any]], tuple[Float[Array, ""], dict[str, Array]]]:
    """Makes the function (params, examples) -> (loss, metrics); examples as of `make_train_step`, with its draws.

    Args:
      train: with dropout.
    """
    network, model = UpscalerNetwork(config.upscaler), Transformer(config.model)
    quantizer, patchify = BinaryQuantizer(config.tokenizer.quantizer), config.tokenizer.patchify
    schedule, given = config.schedule, config.given_scales

    def predict(params: PyTree, examples: dict[str, Any]) -> Any:
        rngs = {"dropout": jax.random.key(examples["dropout"][0])} if train else None
        of_network = {"params": params[NETWORK]}
        return cast(Any, network.apply)(of_network, examples["low_features"], train, rngs=rngs)

    def stage_1(params, examples):
        targets = upscaler_losses.residuals(examples["features"], schedule.times(patchify), given, quantizer)
        return upscaler_losses.residual_loss(predict(params, examples), jax.lax.stop_gradient(targets))

    def stage_2(params, examples):
        inputs, bits = upscaler_losses.given_correction(
            examples["features"],
            predict(params, examples),
            examples.get("flips"),
            schedule,
            quantizer,
            patchify,
        )
        logits = cast(Any, model.apply)(
            {"params": params[TRANSFORMER]},
            inputs,
            examples["text"].astype(jnp.float32),
            examples["text_mask"],
            schedule,
            *([examples["drop"], examples["path_factors"].transpose(1, 2, 0)] if train else []),
        )
        weighing = config.loss.token_weights, config.loss.label_smoothing
        return upscaler_losses.later_bit_loss(logits, bits, schedule, given, *weighing)

    return stage_1 if config.stage == 1 else stage_2
