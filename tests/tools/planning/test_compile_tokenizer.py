"""`infinity-jax compile` of a tokenizer: the step of its trainer, for each resolution of its config."""

from pathlib import Path

import jax
import pytest
from helpers.compiling import command, needs_libtpu

from infinity_jax.cli.main import main
from infinity_jax.config import TokenizerConfig
from infinity_jax.config_files import from_dict, load
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.sharding import layout_of
from infinity_jax.tools.planning.lowering import lower_tokenizer_step
from infinity_jax.training import flops


def of_tokenizer(folder: Path, *arguments):
    """The debug config of a tokenizer, at the resolution that compiles soonest."""
    return command("--config", "tokenizer:debug", "--budget", "32px", *arguments, "--quick", folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "remat"), [("cpu:2", "none"), pytest.param("v5e:2x2", "block", marks=needs_libtpu)]
)
def test_a_tokenizer_s_step(tmp_path, topology, remat):
    code, numbers, text = of_tokenizer(
        tmp_path, "--topology", topology, "--mesh", f"fsdp={topology[-1]}", "--remat", remat
    )
    assert code == 0 and numbers is not None, text
    assert numbers["program"] == "tokenizer's train step" and numbers["budget"] == "32px"
    assert numbers["fits"] and numbers["batch"] == 4 and numbers["remat"] == remat
    # The networks of the loss are not in the formula.
    assert 1 < numbers["compiled_over_model_flops"] < 4
    assert "tokenizer's train step of tokenizer:debug" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler"], "a tokenizer has no sampler"),
        (["--microbatches", "2"], "a tokenizer has no sampler, microbatches"),
        (["--batch", "8"], "--batch 8 needs one --budget, of 32px, 64px"),
        (["--remat", "dots"], "remat"),
        (["--size", "125m"], "needs a --budget"),
    ],
)
def test_what_does_not_go_with_a_tokenizer_is_refused(tmp_path, arguments, message, capsys):
    words = [
        "--config",
        "tokenizer:debug",
        "--topology",
        "cpu:1",
        "--json",
        str(tmp_path / "f.json"),
        *arguments,
    ]
    if "--size" in arguments:
        words[1] = "t2i"
    assert main(["compile", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_tokenizer_s_step_is_the_trainer_s():
    """Of each resolution of the config the real step, with the adversary, is lowered for its batch."""
    values = load("tokenizer:debug")
    layout = layout_of(parse_mesh("fsdp=1"), devices=jax.devices()[:1])
    model = from_dict(TokenizerConfig, values.model, "model")
    program = lower_tokenizer_step(values, model, "32px", 4, layout)
    text = program.lowered.as_text()
    assert "4x32x32x3xui8" in text and "discriminator" in str(program.lowered.out_info)
    assert program.model_flops == 4 * flops.tokenizer_train_flops(model, (4, 4))
