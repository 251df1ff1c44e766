"""Models that cannot fit are refused by counting, before any array is made."""

import tracemalloc

import jax
import pytest

from infinity_jax import config_files
from infinity_jax.checkpoints import trained
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime import memory, sharding
from infinity_jax.runtime.mesh import MeshConfig
from infinity_jax.training import run_config, train_tokenizer


def layout() -> sharding.Layout:
    return sharding.layout_of(MeshConfig(), devices=jax.devices()[:1])


def test_the_count_is_that_of_the_published_model():
    small = TransformerConfig(layers=12, width=768, heads=8)
    variables = trained.transformer_variables(small)
    assert memory.check_training_fits(variables, layout(), 16, 0) == 125_185_696


def test_the_message_says_what_is_needed_and_what_there_is(monkeypatch):
    variables = trained.transformer_variables(TransformerConfig(layers=2, width=64, heads=2))
    count = memory.check_training_fits(variables, layout(), 16, 0)
    monkeypatch.setattr(memory, "main_memory", lambda: 5 * 4 * count)
    memory.check_training_fits(variables, layout(), 16, 0)
    with pytest.raises(
        UserError, match=rf"{count:,} parameters takes at least .* GiB on each device, and each"
    ):
        memory.check_training_fits(variables, layout(), 16, 1000)
    memory.check_training_fits(variables, layout(), 12, 1000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["model.layers=1000000000"],
            r"model\.layers is 1000000000; it must be a whole number from 1 to 1,000",
        ),
        (["model.width=10000000"], r"model\.width is 10000000; it must be a whole number from 1 to 131,072"),
        (["model.layers=1000", "model.width=131072"], "takes at least .* GiB"),
        (["train.batch_size=16000000"], "takes at least .* GiB"),
        (["model.text_channels=131072", "model.text_length=65536", "model.width=131072"], "takes at least"),
    ],
)
def test_a_transformer_beyond_the_machine_is_refused(changes, message):
    config = config_files.load("emoji", [f"--config.{change}" for change in changes])
    tracemalloc.start()
    with pytest.raises(UserError, match=message):
        run_config.read_config(config)
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.base_width=10000000"], r"model\.base_width is 10000000; it must be a whole number"),
        (["model.base_width=16384", "model.multipliers=(1,64,64,64)"], "takes at least .* GiB"),
        (["train.batch_size=16000000"], "takes at least .* GiB"),
    ],
)
def test_a_tokenizer_beyond_the_machine_is_refused(changes, message, tmp_path):
    config = config_files.load("emoji_tokenizer", [f"--config.{change}" for change in changes])
    with pytest.raises(UserError, match=message):
        train_tokenizer.main(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_planning_is_not_limited_by_this_machine():
    """`compile` and `sweep --dry-run` plan for other machines, from shapes alone."""
    shapes = trained.transformer_shapes(TransformerConfig(layers=1000, width=131072, heads=1024))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) > 10**14
    assert trained.tokenizer_shapes(TokenizerConfig(base_width=4096))
