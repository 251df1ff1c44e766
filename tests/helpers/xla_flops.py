"""FLOP as XLA's cost analysis counts them, over those by formula, for models of any size: nothing runs or is compiled.

Counted are the loss and the real train step (self-correction, clipping, AdamW and the moving average), lowered from
shapes for a CPU, with the attention of all heads at once: a CPU's form for few scores, and an accelerator's without a
fused kernel. Of many scores a CPU computes each twice, which no model needs.

`python tests/helpers/xla_flops.py` prints the ratios of all models and the worst of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
from jax import lax
from jax.extend.core import Jaxpr, jaxprs_in_params

from infinity_jax import presets
from infinity_jax.checkpoints import trained
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.scales import make_schedule
from infinity_jax.training import flops, optim
from infinity_jax.training import state as train_state
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.transformer_step import LossConfig, StepConfig, make_loss, make_train_step
from infinity_jax.transformer.kernels import attention_xla
from infinity_jax.transformer.transformer import Transformer

PUBLISHED = tuple(
    (size, budget)
    for size in ("125m", "361m", "940m", "2.2b", "4.7b")
    for budget in ("0.06M", "0.25M", "0.60M", "1M")
)
SMALL = ((2, 64, 2), (3, 96, 2), (4, 128, 2), (5, 192, 3), (6, 256, 4))  # layers, width, heads
OPTIM, LOSS = optim.OptimConfig(), LossConfig()


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, a scale preset, and a batch of so many pictures."""

    model: TransformerConfig
    scales: str
    batch: int

    def products(self, is_train: bool) -> float:
        """XLA's count of the products of matrices alone, each as often as the loops around it run, over the formula."""
        function, shapes = self._program(is_train)
        with mock.patch.object(attention_xla, "MANY_SCORES", 2**62):
            jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
        count = sum(times * _flops_of_product(*product) for times, product in _products(jaxpr))
        return count / self._by_formula(is_train)

    def whole(self, is_train: bool) -> float:
        """XLA's count of the whole program, element-wise work included, over the formula.

        XLA counts the body of a loop once, so layers are no loop here; and as FLOP are linear in the number of layers,
        programs of one and two say those of all.
        """
        counts = []
        for n in (1, 2):
            model = dataclasses.replace(self.model, layers=n, scan_layers=False)
            function, shapes = dataclasses.replace(self, model=model)._program(is_train)
            with mock.patch.object(attention_xla, "MANY_SCORES", 2**62):
                counts.append(_flops_of_program(function, *shapes))
        total = counts[0] + (self.model.layers - 1) * (counts[1] - counts[0])
        return total / self._by_formula(is_train)

    def _by_formula(self, is_train: bool) -> int:
        arguments = self.model, make_schedule(self.scales), self.model.text_length
        one = flops.train_flops(*arguments) if is_train else flops.forward_flops(*arguments).total
        return self.batch * one

    def _program(self, is_train: bool) -> tuple[Callable, tuple]:
        """The loss or the train step, and the shapes of its arguments."""
        c, schedule, shape = self.model, make_schedule(self.scales), jax.ShapeDtypeStruct
        params = trained.transformer_shapes(c)
        batch = {
            "text": shape((self.batch, c.text_length, c.text_channels), "float16"),
            "text_mask": shape((self.batch, c.text_length), "bool"),
        }
        if not is_train:
            batch |= {
                "inputs": shape((self.batch, schedule.length - 1, c.bits), "float32"),
                "bits": shape((self.batch, schedule.length, c.bits), "int8"),
                "drop": shape((self.batch,), "bool"),
                "path_factors": shape((self.batch, c.layers, 2), "float32"),
            }
            return make_loss(Transformer(c), schedule, LOSS), (params, batch)
        config = StepConfig(c, TokenizerConfig(bits=c.bits), CorrectionConfig(), LOSS, OPTIM, steps=1000)
        state = jax.eval_shape(lambda p: train_state.create(p, config.optimiser, ema=True), params)
        batch |= {"features": shape((self.batch, *schedule.last, c.bits), "float32")}
        key = jax.eval_shape(lambda: jax.random.key(0))
        return make_train_step(config, schedule), (state, batch, key)


def small(layers: int, width: int, heads: int) -> Case:
    """A model of pictures of 64x64 in 32 bits, as the bundled one is."""
    model = TransformerConfig(
        layers=layers, width=width, heads=heads, bits=32, text_channels=384, text_length=32
    )
    return Case(model, "64px", 32)


def published(size: str, budget: str) -> Case:
    """One of the paper's."""
    return Case(presets.preset(size).transformer, budget, 4)


def _flops_of_program(function: Callable, *shapes: Any) -> float:
    analysis: Any = jax.jit(function).lower(*shapes).cost_analysis()
    return analysis["flops"]


def _products(jaxpr: Jaxpr) -> Iterator[tuple[int, tuple]]:
    """Every product of matrices: how often it runs, and the arguments of `_flops_of_product`."""
    for eqn in jaxpr.eqns:
        if eqn.primitive is lax.dot_general_p:
            arrays: list[Any] = [x.aval for x in eqn.invars]
            shapes = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)
            yield 1, (*shapes, eqn.params["dimension_numbers"])
        inside = [product for sub in jaxprs_in_params(eqn.params) for product in _products(sub)]
        # Of other loops and of branches nothing says how often they run.
        assert not inside or eqn.primitive.name not in ("while", "cond"), eqn
        repeats = eqn.params["length"] if eqn.primitive is lax.scan_p else 1
        yield from ((repeats * times, product) for times, product in inside)


@functools.cache
def _flops_of_product(a: jax.ShapeDtypeStruct, b: jax.ShapeDtypeStruct, dimensions: tuple) -> float:
    return _flops_of_program(functools.partial(lax.dot_general, dimension_numbers=dimensions), a, b)


def main() -> None:
    """Prints a table: of each model XLA's count over the formula, and the ratio that is farthest from 1."""
    print(f"{'model':>20} {'products':>18} {'whole program':>18}   (of the loss, of the train step)")
    farthest = 1.0
    for numbers, case in [(n, small(*n)) for n in SMALL] + [(n, published(*n)) for n in PUBLISHED]:
        products = [case.products(is_train) for is_train in (False, True)]
        whole = [case.whole(is_train) for is_train in (False, True)]
        compared = products + (whole if numbers in PUBLISHED else [])
        farthest = max(farthest, *compared, key=lambda ratio: abs(ratio - 1))
        row = "".join(
            f" {forward:>8.4f} {train_transformer:>8.4f} " for forward, train_transformer in (products, whole)
        )
        print(f"{'/'.join(map(str, numbers)):>20} {row}", flush=True)
    print(f"farthest from 1, products of all and whole programs of the published sizes: {farthest:.4f}")


if __name__ == "__main__":
    main()
