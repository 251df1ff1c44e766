"""The step's programs: one for each shape of batch, said once in the log, its state's memory used again."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.runtime.compiled_step import CompiledStep, planned_bytes
from infinity_jax.scales import make_schedule
from infinity_jax.training import optim
from infinity_jax.training import state as train_state
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.transformer_step import LossConfig, StepConfig, make_train_step
from infinity_jax.transformer.transformer import init_params

KEY = jax.random.key(0)


def test_each_shape_of_batch_is_compiled_and_reported_once(caplog, monkeypatch):
    # The package's own setting while a command runs; here its lines go to pytest.
    monkeypatch.setattr(logging.getLogger("absl"), "propagate", True)
    traced = []

    def add(state, batch, key):
        traced.append(batch["x"].shape)
        return state + batch["x"].sum(), {"loss": state}

    step = CompiledStep(jax.jit(add, donate_argnums=0))
    state = jnp.zeros(())
    with caplog.at_level("INFO"):
        for shape in ((2, 3), (3, 2), (2, 3), (3, 2)):
            state, metrics = step(state, {"x": jnp.ones(shape)}, KEY)
    assert float(state) == 24 and float(metrics["loss"]) == 18
    assert traced == [(2, 3), (3, 2)]
    lines = [line for line in caplog.messages if "compiled the step" in line]
    assert [line.split(" in ")[0] for line in lines] == [
        "compiled the step for batches of x 2x3",
        "compiled the step for batches of x 3x2",
    ]
    assert all("GiB" in line for line in lines)


@pytest.mark.long
def test_the_new_state_takes_the_memory_of_the_old():
    schedule, tokenizer = make_schedule("32px"), TokenizerConfig(bits=8)
    config = TransformerConfig(layers=2, width=64, heads=2, bits=8, text_channels=128, text_length=4)
    settings = CorrectionConfig(), LossConfig(), optim.OptimConfig()
    parts = StepConfig(config, tokenizer, *settings, steps=10)
    step = make_train_step(parts, schedule)
    state = train_state.create(init_params(config, KEY, schedule), parts.optimiser, ema=True)
    random = np.random.default_rng(0)
    batch = {
        "features": jnp.asarray(random.standard_normal((2, 4, 4, 8)), jnp.float32),
        "text": jnp.asarray(random.standard_normal((2, 4, 128)), jnp.float16),
        "text_mask": jnp.ones((2, 4), bool),
    }
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, KEY).compile()
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    memory: Any = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == state_bytes
    # Beside the new state there are only the metrics, and a list of where all arrays lie.
    assert memory.output_size_in_bytes - state_bytes < 5000
    assert (
        planned_bytes(compiled)
        < state_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes + 5000
    )

    addresses = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)}
    new, _ = compiled(state, batch, KEY)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert {x.unsafe_buffer_pointer() for x in jax.tree.leaves(new)} == addresses
