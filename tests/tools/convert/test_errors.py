"""Conversion is strict: weights, configs and arguments that do not go together are refused, by name."""

import dataclasses

import numpy as np
import pytest
from helpers.published import (
    SMALL,
    SMALL_SECTION,
    TOKENIZER,
    TOKENIZER_SECTION,
    assert_file_holds,
    random_state,
    save_safetensors,
    tokenizer_state,
    transformer_state,
    write_config,
    write_pth,
)
from safetensors.numpy import load_file

from infinity_jax.cli import main as cli
from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.presets import PRESETS, TOKENIZERS
from infinity_jax.tools.convert.configs import resolve_config
from infinity_jax.tools.convert.convert import main, to_torch
from infinity_jax.tools.convert.kinds import KINDS
from infinity_jax.tools.convert.tokenizer_names import tokenizer_links
from infinity_jax.tools.convert.transformer_names import transformer_links


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "small.json", transformer=SMALL_SECTION, tokenizer=TOKENIZER_SECTION)


def refused(message, source, kind, config, out):
    with pytest.raises(UserError, match=message):
        main(str(source), kind, config, str(out))
    assert not out.exists() or not list(out.iterdir())


def test_conversion_is_strict(config, tmp_path):
    state, out = transformer_state(), tmp_path / "out"

    def refuse(message, state):
        refused(message, write_pth(tmp_path / "a.pth", state), "transformer", config, out)

    name = "block_chunks.1.module.0.ffn.fc1.weight"
    refuse(f"1 tensors are missing: {name}$", {k: v for k, v in state.items() if k != name})
    refuse("105 tensors are missing: .* and 97 more", {"pos_start": state["pos_start"]})
    refuse("1 tensors are unknown: extra$", state | {"extra": np.zeros(1)})
    refuse(r"fc1\.weight has \[64, 256\], expected \[256, 64\]$", state | {name: state[name].T})
    refuse("pos_start is int64, but weights are", state | {"pos_start": state["pos_start"].astype(np.int64)})
    refuse("zero_k_bias holds", state | {"block_chunks.0.module.0.sa.zero_k_bias": np.ones(64, np.float32)})
    refuse("5 chunks", {k.replace("chunks.1.", "chunks.4."): v for k, v in state.items()})
    refuse("this is a tokenizer; use --kind tokenizer", tokenizer_state())
    refuse("weights of this project already", {"text/fc1/bias": np.zeros(3)})
    mask = "quantizer.lfq.mask"
    wrong = tokenizer_state() | {mask: np.arange(6)}
    refused(f"{mask} holds", write_pth(tmp_path / "b.pth", wrong), "tokenizer", config, out)


def shapes_only(links):
    return {link.published: np.broadcast_to(np.float16(0), link.published_shape) for link in links}


def test_another_published_size_is_named():
    tokenizer, transformer = KINDS["tokenizer"], KINDS["transformer"]
    is_d24 = (
        "This is a tokenizer of d=24, the config says d=32. These look like the weights of 'd24'. 5 tensors"
    )
    with pytest.raises(UserError, match=is_d24):
        tokenizer.fitting_links(shapes_only(tokenizer_links(TOKENIZERS["d24"])), TOKENIZERS["d32"], "2b")
    is_2b = shapes_only(transformer_links(PRESETS["2b"].transformer, 8, caption_rows=300))
    with pytest.raises(UserError, match=r"config '2\.2b': These look like the weights of '2b'\. "):
        transformer.fitting_links(is_2b, PRESETS["2.2b"].transformer, "2.2b")
    with pytest.raises(
        UserError, match=r"'125m': These look like the weights of '2b'\. .* 8 chunks, .* 12 layers"
    ):
        transformer.fitting_links(is_2b, PRESETS["125m"].transformer, "125m")


@pytest.mark.parametrize("first", ["transformer", "tokenizer"])
def test_a_tokenizer_of_another_d_is_refused_whichever_comes_first(first, tmp_path):
    tokenizer = dataclasses.replace(TOKENIZER, bits=4)
    config = write_config(
        tmp_path / "c.json", transformer=SMALL_SECTION, tokenizer=TOKENIZER_SECTION | {"bits": 4}
    )
    files = {
        "transformer": write_pth(tmp_path / "t.pth", transformer_state()),
        "tokenizer": write_pth(tmp_path / "v.pth", random_state(tokenizer_links(tokenizer)), ("vae",)),
    }
    second = next(kind for kind in files if kind != first)
    out = tmp_path / "out"
    main(str(files[first]), first, config, str(out))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(UserError, match=r"tokenizer gives 4 bits a token .* the transformer has 6"):
        main(str(files[second]), second, config, str(out))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_configs_of_every_form(tmp_path):
    assert resolve_config("2b", "transformer").model == PRESETS["2b"].transformer
    assert resolve_config("2b", "transformer").sections["text"] == {"encoder": "t5", "max_length": 512}
    assert resolve_config("8b", "tokenizer").model == TOKENIZERS["d14_stride8_patchify"]
    assert resolve_config("d24", "tokenizer").sections["scales"] == "1M"
    emoji = resolve_config("configs/emoji.py:debug", "transformer")
    assert emoji.model == TransformerConfig(
        layers=2, width=64, heads=2, text_channels=384, text_length=32, drop_path=0.0, scan_layers=False
    )
    assert emoji.sections["scales"] == "64px" and "source" not in emoji.sections
    assert emoji.sections["text"] == {
        "encoder": "minilm", "max_length": 32, "dtype": "bfloat16", "classes": 0, "labels": (),
    }  # fmt: skip
    assert resolve_config("configs/emoji_tokenizer.py", "tokenizer").sections["scales"] == "64px"
    file = write_config(tmp_path / "a.json", transformer=SMALL_SECTION, scales="0.06M")
    small = resolve_config(file, "transformer")
    assert small.model == SMALL and small.sections["scales"] == "0.06M" and "sample" in small.sections
    for name, kind, message in [
        ("3b", "transformer", "unknown transformer config '3b'; known: 125m"),
        ("d32", "transformer", "unknown transformer config"),
        (file, "tokenizer", "no section 'tokenizer' .it has: transformer, scales"),
        (str(tmp_path / "none.json"), "tokenizer", "no config file"),
        ("configs/none.py", "tokenizer", "no config file"),
        ("configs/emoji.py", "tokenizer", "unknown config key tokenizer"),
        (write_config(tmp_path / "b.json", tokenizer={"bit": 3}), "tokenizer", "did you mean tokenizer.bits"),
        (
            write_config(tmp_path / "c.json", tokenizer={}, scales="9M"),
            "tokenizer",
            "unknown scale preset '9M'",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            resolve_config(name, kind)


def test_the_command_and_its_mistakes(config, tmp_path, capsys):
    source, out = str(write_pth(tmp_path / "a.pth", transformer_state())), str(tmp_path / "out")
    there = ["convert", "--from", source, "--kind", "transformer", "--config", config, "--out", out]
    assert cli.main(there) == 0
    back = ["convert", "--to-torch", str(tmp_path / "b.pth"), "--from", out, "--kind", "transformer"]
    assert cli.main(back) == 0
    assert_file_holds(tmp_path / "b.pth", transformer_state(), "transformer")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for mistake, message in [
        (there[:-2], "--out missing"),
        (there[:5], "--config and --out missing; or, for the way back to PyTorch, --to-torch FILE"),
        ([*back, "--out", out], "--to-torch takes no --out"),
        ([*back[:-1], "t5"], "not t5"),
        ([*back[:-1], "tokenizer"], "holds no tokenizer"),
        ([*back[:4], str(tmp_path / "run"), *back[5:]], "infinity-jax export --checkpoint"),
        ([*back[:4], str(tmp_path), *back[5:]], "has no config.json"),
        ([*back[:4], str(tmp_path / "nowhere"), *back[5:]], "no checkpoint folder"),
        ([*back[:2], "b.onnx", *back[3:]], "unknown suffix"),
    ]:
        assert cli.main(mistake) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["convert", "--from", source, "--kind", "vae"])


def test_a_checkpoint_that_does_not_fit_its_config_is_not_exported(config, tmp_path):
    folder = tmp_path / "out"
    main(str(write_pth(tmp_path / "a.pth", transformer_state())), "transformer", config, str(folder))
    arrays = load_file(folder / "transformer.safetensors")
    save_safetensors(arrays | {"start_position": np.zeros(3, np.float32)}, folder / "transformer.safetensors")
    with pytest.raises(UserError, match=r"transformer.safetensors is damaged: it has \d+ bytes in place of"):
        to_torch(str(tmp_path / "b.pth"), str(folder), "transformer")
    (folder / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"start_position is \(3,\) in the file and \(64,\) by the config"):
        to_torch(str(tmp_path / "b.pth"), str(folder), "transformer")
