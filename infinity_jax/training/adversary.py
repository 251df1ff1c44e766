"""A tokenizer's adversary in a run: its config, its state, and what each network learns from the other in a step."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.runtime import seeds
from infinity_jax.training import config as train_config
from infinity_jax.training import discriminator, optim
from infinity_jax.training import state as train_state
from infinity_jax.training.discriminator import STYLEGAN, DiscriminatorConfig
from infinity_jax.training.state import TrainState, TrainStep


class Adversary(NamedTuple):
    """What the step needs to train a discriminator."""

    config: DiscriminatorConfig
    optimiser: optax.GradientTransformation


def adversary_of(
    config: Any, tokenizer_optim: optim.OptimConfig, train: train_config.TokenizerTrainConfig, examples: int
) -> Adversary | None:
    """Reads the adversary of a config, if it trains with one, for a data set of so many examples.

    The discriminator trains as the tokenizer does, with its share of the run's rate at every step and no average.
    """
    if not train.adversarial:
        return None
    values = dict(config.get("discriminator", {}))
    for name in values.keys() & {"start_step", "ramp_steps"}:
        values[name] = train_config.in_steps(
            values[name], steps=train.steps, batch_size=train.batch_size, examples=examples
        )
    opponent = from_dict(DiscriminatorConfig, values, "discriminator")
    rate = tokenizer_optim.learning_rate * opponent.learning_rate_factor
    own = dataclasses.replace(tokenizer_optim, learning_rate=rate, ema_decay=0.0)
    return Adversary(opponent, optim.make_optimiser(own, train.steps, start=opponent.start_step))


def check_sides(adversary: Adversary | None, sides: Sequence[int]) -> None:
    """Raises UserError where pictures of several sizes are to be judged by a network that is made for one."""
    if adversary is not None and adversary.config.architecture == STYLEGAN and len(sides) > 1:
        raise UserError(
            f"discriminator.architecture {STYLEGAN!r} is made for pictures of one size, and data.mix has "
            f"{', '.join(map(str, sides))} pixels; leave data.mix out, or use discriminator.architecture=patches"
        )


def with_adversary(step: TrainStep, adversary: Adversary, side: int, seed: int) -> TrainStep:
    """Adds a discriminator's own state to that of the step, for pictures from `side` x `side` pixels on."""

    def variables():
        key = seeds.stream(jax.random.key(seed), "discriminator", 0)
        return discriminator.network_of(adversary.config).init(key, jnp.zeros((1, side, side, 3)))["params"]

    new_opponent, shardings = train_state.new_state(variables, adversary.optimiser, False, step.layout)

    def new_state() -> TrainState:
        # Its steps are skipped together with the tokenizer's, whose state counts them.
        return dataclasses.replace(
            step.new_state(), adversary=dataclasses.replace(new_opponent(), skipped=None)
        )

    both = dataclasses.replace(step.shardings, adversary=dataclasses.replace(shardings, skipped=None))
    return dataclasses.replace(step, new_state=new_state, shardings=both)


def fool(config: DiscriminatorConfig, state: TrainState, drawn, to_decoded, gradient_of, to_projected):
    """Takes the weighted gradient of the adversarial loss in what was decoded, and what to log of it.

    `drawn` is what was decoded, and what makes pictures of it.
    """
    network, (decoded, shown) = discriminator.network_of(config), drawn

    def loss_of(decoded):
        params = {"params": state.adversary.params}
        return discriminator.made_loss(config, cast(Any, network.apply)(params, shown(decoded)))

    loss, to_fool = jax.value_and_grad(loss_of)(decoded)
    weight = discriminator.weight_at(config, state.adversary.step)
    if config.adaptive_weight:
        # All but the last kernel's gradient is dead code, which the compiler leaves out.
        of_last = [
            _last_kernel(gradient_of((g, jax.tree.map(jnp.zeros_like, to_projected)))[0]["decoder"])
            for g in (to_decoded, to_fool)
        ]
        weight = weight * discriminator.adaptive_factor(*of_last)
    return weight * to_fool, {"adversarial": loss, "adversarial_weight": weight}


def _last_kernel(of_decoder: Mapping[str, Any]) -> jax.Array:
    """Picks the kernel of the decoder's last layer, of convolutions or of attention."""
    return of_decoder["conv_out" if "conv_out" in of_decoder else "fc2"]["kernel"]


def discriminator_gradients(adversary: Adversary, own: TrainState, image, made):
    """Takes the gradients of the discriminator's loss at its state, and what to log of it."""
    config, network = adversary.config, discriminator.network_of(adversary.config)
    made = jax.lax.stop_gradient(made)

    def judged(params, pictures):
        return cast(Any, network.apply)({"params": params}, pictures)

    def loss_of(params):
        logits_real, logits_made = (judged(params, pictures) for pictures in (image, made))
        loss = discriminator.discriminator_loss(config, logits_real, logits_made)
        metrics = {"discriminator_accuracy": (jnp.mean(logits_real > 0) + jnp.mean(logits_made <= 0)) / 2}
        if config.r1:
            due = discriminator.r1_due(config, own.step)
            of_pictures = functools.partial(judged, params)
            slope = jax.lax.cond(
                due, lambda: discriminator.squared_slope(of_pictures, image), lambda: jnp.zeros(())
            )
            metrics["r1"] = slope  # 0 in the steps between
            return loss + config.r1 / 2 * config.r1_every * slope, {**metrics, "discriminator": loss}
        return loss, {**metrics, "discriminator": loss}

    (_, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(own.params)
    return grads, metrics
