"""One training step of the transformer: features -> bits -> self-correction -> logits -> loss (paper Algorithm 2)."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Annotated, Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from infinity_jax.config import VECTOR, TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, OneOf, Range, ShareBelowOne, WholeNumber
from infinity_jax.runtime import seeds
from infinity_jax.runtime.sharding import Layout, constrain
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.bsq import BinaryQuantizer
from infinity_jax.tokenizer.pyramid import Quantizer
from infinity_jax.training import correction, progressive_scales, transformer_losses
from infinity_jax.training import state as train_state
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig, make_optimiser
from infinity_jax.training.state import StepFunction, TrainStep
from infinity_jax.transformer.transformer import Transformer, draw_path_factors, init_variables


@dataclasses.dataclass(frozen=True)
class LossConfig(Checked):
    """How the transformer's loss is weighed.

    Attributes:
      token_weights: "uniform" or "by_scale" (docs/spec.md section 5).
      label_smoothing: of every bit (with head "index": of the index).
      caption_drop: share of the captions replaced by the learned empty caption, for guidance (docs/spec.md section 4).
      progressive: share of the run by whose end all scales have joined (`progressive_scales`, of codes only); 0 trains
        all from the start.
      progressive_first: with how many scales it begins.
      progressive_ramp: steps over which the loss of a scale that has joined grows to its full weight.
    """

    token_weights: Annotated[str, OneOf(transformer_losses.TOKEN_WEIGHTS)] = "by_scale"
    label_smoothing: ShareBelowOne = 0.0
    caption_drop: ShareBelowOne = 0.1
    progressive: ShareBelowOne = 0.0
    progressive_first: Annotated[int, Range(2, 64)] = 5
    progressive_ramp: WholeNumber = 0


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What a train step of the transformer is made of.

    Attributes:
      tokenizer: whose features the batches hold.
      steps: length of the run, which the learning rate's schedule follows.
      quantizer: the tokenizer's, where its tokens are codes, see `model.quantizer_of`; of bits it need not be given.
      microbatches: parts of a batch that the transformer sees one after the other; the gradients are those of the
        whole batch.
    """

    model: TransformerConfig
    tokenizer: TokenizerConfig
    correction: CorrectionConfig
    loss: LossConfig
    optim: OptimConfig
    steps: int
    microbatches: int = 1
    quantizer: Quantizer | None = None

    @functools.cached_property
    def optimiser(self) -> optax.GradientTransformation:
        """AdamW on all parameters, decaying only the linear maps."""
        return make_optimiser(self.optim, self.steps, no_decay=not_a_kernel)


def build_step(
    config: StepConfig, schedules: Iterable[ScaleSchedule], layout: Layout, seed: int = 0
) -> TrainStep:
    """Builds the step that trains, that `infinity-jax compile` lowers, and that the benchmark measures.

    Args:
      schedules: those that a batch may have; each becomes a program of its own. A batch is as in `make_train_step`.
      seed: of the fresh parameters.
    Raises:
      UserError: a parameter cannot be split over the mesh.
    """
    schedules = list(schedules)

    def variables() -> PyTree:
        return init_variables(config.model, jax.random.key(seed), schedules[0])["params"]

    new_state, shardings = train_state.new_state(
        variables, config.optimiser, config.optim.ema_decay > 0, layout
    )
    function = of_ratio(
        schedules, config.tokenizer.patchify, lambda schedule: make_train_step(config, schedule)
    )
    return TrainStep(function, new_state, shardings, layout)


def make_train_step(config: StepConfig, schedule: ScaleSchedule) -> StepFunction:
    """Makes the step (state, batch, key) -> (state, metrics), to be jitted, for batches of one schedule.

    The batch holds `features` float32 [B,H,W,d] of the tokenizer, `text` float [B,T,C] and `text_mask` bool [B,T].
    Random_Flip and re-quantisation happen inside, so every step sees fresh flips.
    """
    gradient_at = _gradient_at(config, schedule)

    def train_step(state, batch, key):
        gradient_fn = gradient_at(state.step)
        how = config.correction, config.tokenizer, config.quantizer
        inputs, bits = corrected_inputs(key, state.step, batch["features"], schedule, *how)
        draws = draw_examples(key, state.step, len(bits), config.model, config.loss)
        texts = {"text": batch["text"], "text_mask": batch["text_mask"]}
        examples = {"inputs": inputs, "bits": bits, **texts, **draws}
        (loss, metrics), grads = mean_over_parts(gradient_fn, state.params, examples, config.microbatches)
        metrics = {"loss": loss, **metrics, "gradient_norm": optax.tree.norm(grads)}
        return train_state.apply_gradients(state, grads, config.optimiser, config.optim.ema_decay), metrics

    return train_step


def _gradient_at(config: StepConfig, schedule: ScaleSchedule) -> Callable[[Any], Callable]:
    """Makes the function from a step to (params, examples) -> ((loss, metrics), gradient)."""
    model, loss = Transformer(config.model), config.loss
    if not loss.progressive:
        gradient_fn = jax.value_and_grad(make_loss(model, schedule, loss), has_aux=True)
        return lambda step: gradient_fn
    if not config.model.codes or loss.token_weights != "uniform":
        raise UserError(
            f"loss.progressive is {loss.progressive}; scales join one by one in models of codes with "
            "loss.token_weights='uniform' only: set it to 0, or train in stages"
        )
    if loss.progressive_first > schedule.n_scales:
        raise UserError(
            f"loss.progressive_first is {loss.progressive_first} and pictures have {schedule.n_scales} scales; "
            "begin with fewer"
        )
    joins = progressive_scales.join_steps(
        loss.progressive_first, schedule.n_scales, loss.progressive, config.optim.warmup_steps, config.steps
    )
    how = joins, loss.progressive_ramp, loss.label_smoothing
    return progressive_scales.make_gradient(model, schedule, *how)


def make_loss(
    model: Transformer, schedule: ScaleSchedule, loss_config: LossConfig
) -> Callable[[PyTree, dict[str, Array]], tuple[Float[Array, ""], dict[str, Array]]]:
    """Makes the function (params, examples) -> (loss, metrics).

    Examples hold `inputs` and `bits` of `corrected_inputs`, `text` and `text_mask` of the batch, and `draw_examples`.
    """

    loss_of = transformer_losses.loss_of(model.config)

    def loss_fn(params, examples):
        logits = cast(Any, model.apply)(
            {"params": params},
            examples["inputs"],
            examples["text"].astype(jnp.float32),
            examples["text_mask"],
            schedule,
            examples["drop"],
            examples["path_factors"].transpose(1, 2, 0),
        )
        weighing = loss_config.token_weights, loss_config.label_smoothing
        return loss_of(logits, examples["bits"], schedule, *weighing)

    return loss_fn


def draw_examples(
    key: Key[Array, ""], step: Int[Array, ""] | int, batch: int, model: TransformerConfig, config: LossConfig
) -> dict[str, Array]:
    """Draws for a step `drop` bool [B], captions to leave out; `path_factors` float32 [B,N,2]."""
    drop_key = seeds.stream(key, "caption drop", step)
    path_key = seeds.stream(key, "drop path", step)
    return {
        "drop": jax.random.bernoulli(drop_key, config.caption_drop, (batch,)),
        "path_factors": draw_path_factors(model, path_key, batch).transpose(2, 0, 1),
    }


def mean_over_parts(function: Callable, params: PyTree, batch: dict[str, Array], parts: int) -> Any:
    """Takes the mean of function(params, part) over equal parts of a batch, one after the other."""
    if parts == 1:
        return function(params, batch)

    def split(x: Array) -> Array:
        # Part i takes every `parts`-th picture, so that each device gives of its own: nothing moves.
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total, part):
        part = jax.tree.map(lambda x: constrain(x, "batch", *[None] * (x.ndim - 1)), part)
        return jax.tree.map(jnp.add, total, function(params, part)), None

    split_batch = jax.tree.map(split, batch)
    shapes = jax.eval_shape(function, params, jax.tree.map(lambda x: x[0], split_batch))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, split_batch)
    return jax.tree.map(lambda x: x / parts, total)


def corrected_inputs(
    key: Key[Array, ""],
    step: Int[Array, ""] | int,
    features_BHWd: Float[Array, "B H W d"],
    schedule: ScaleSchedule,
    config: CorrectionConfig,
    tokenizer: TokenizerConfig,
    quantizer: Quantizer | None = None,
) -> tuple[Float[Array, "B L_minus_1 D"], Int[Array, "B L *D"]]:
    """Makes inputs float32 [B,L-1,D] and labels int8 [B,L,D] of a batch, with this step's random flips.

    D is the transformer's bits a token, `tokenizer.transformer_bits`. Codes, with their `quantizer`, are not flipped;
    their labels are int32 [B,L].
    """
    if tokenizer.quantizer == VECTOR:
        assert quantizer is not None, "a tokenizer of codes needs its quantiser"
        return correction.self_correction(features_BHWd, None, schedule, quantizer)
    batch, d = features_BHWd.shape[0], features_BHWd.shape[-1]
    sizes = schedule.times(tokenizer.patchify)
    flips = correction.draw_flips(seeds.stream(key, "flip bits", step), sizes, batch, d, config)
    return correction.self_correction(
        features_BHWd,
        flips,
        schedule,
        BinaryQuantizer(tokenizer.quantizer),
        config.requantise,
        tokenizer.patchify,
    )


def make_eval_step(
    model: Transformer,
    schedule: ScaleSchedule,
    tokenizer: TokenizerConfig,
    quantizer: Quantizer | None = None,
) -> Callable[[PyTree, dict[str, Array]], dict[str, Array]]:
    """Makes the jitted (params, batch) -> metrics of teacher forcing without flips, with uniform token weights.

    The loss is a mean over the batch: where `valid` is false a picture counts nothing.
    """

    loss_of = transformer_losses.loss_of(model.config)

    def eval_step(params, batch):
        no_flips = CorrectionConfig(p=0.0)
        inputs_BLd, bits_BLd = corrected_inputs(
            jax.random.key(0), 0, batch["features"], schedule, no_flips, tokenizer, quantizer
        )
        text_BTC = batch["text"].astype(jnp.float32)
        logits = cast(Any, model.apply)(
            {"params": params}, inputs_BLd, text_BTC, batch["text_mask"], schedule
        )

        def one(logits, bits_Ld):
            loss, metrics = loss_of(logits[None], bits_Ld[None], schedule)
            return {"loss": loss, **metrics}

        per_picture = jax.vmap(one)(logits, bits_BLd)
        valid_B = batch["valid"].astype(jnp.float32)
        return jax.tree.map(lambda x: jnp.tensordot(valid_B, x, 1) / jnp.sum(valid_B), per_picture)

    return jax.jit(eval_step)


def of_ratio(
    schedules: Iterable[ScaleSchedule], patchify: int, make: Callable[[ScaleSchedule], Callable]
) -> Callable:
    """Makes a step of (state or parameters, batch, ...) that is the one of the batch's schedule.

    The size of the features, in tokens of a tokenizer with this `patchify`, says which that is. So each aspect ratio
    becomes a program of its own.
    """
    steps = {schedule.times(patchify).last: make(schedule) for schedule in set(schedules)}
    return lambda state, batch, *more: steps[batch["features"].shape[1:3]](state, batch, *more)


def not_a_kernel(name: str) -> bool:
    """Tells whether a parameter is exempt from weight decay: all but the linear maps are (docs/spec.md section 6).

    And but the vectors of classes, as in VAR (docs/spec_var.md section 4).
    """
    return name.split("/")[-1] != "kernel" and name != "label/embedding"
