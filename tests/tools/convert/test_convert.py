"""Published weights -> our checkpoint -> published weights: nothing lost, nothing taken that does not fit."""

import dataclasses
import gzip
import json
import tracemalloc

import jax
import numpy as np
import pytest
from helpers.paths import GOLDEN
from helpers.published import (
    SMALL,
    SMALL_SECTION,
    TOKENIZER,
    TOKENIZER_SECTION,
    assert_file_holds,
    assert_same,
    save_safetensors,
    tokenizer_state,
    transformer_state,
    write_config,
    write_pth,
    write_shards,
)
from helpers.published_params import parameter_count, params_from
from safetensors.numpy import load_file

from infinity_jax.checkpoints import pretrained, trained
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.files.tensors import open_tensors
from infinity_jax.presets import PRESETS, TOKENIZERS, UPSCALERS, VAR
from infinity_jax.runtime import trees
from infinity_jax.tools.convert.convert import main, to_torch
from infinity_jax.tools.convert.links import Buffer, Link, our_shapes
from infinity_jax.tools.convert.tokenizer_names import tokenizer_links
from infinity_jax.tools.convert.transformer_names import transformer_links
from infinity_jax.tools.convert.upscaler_names import upscaler_links

NAMES = GOLDEN / "names"
COUNTS = {
    "125m": 125_185_696,
    "361m": 361_633_792,
    "940m": 940_944_832,
    "2.2b": 2_256_694_912,
    "4.7b": 4_716_421_888,
    "2b": 2_204_564_032,
    "8b": 8_375_791_824,
}

VAR_COUNTS = {
    "var-d16": 310_283_520,
    "var-d20": 600_917_136,
    "var-d24": 1_033_399_360,
    "var-d30": 2_010_020_356,
    "var-d36": 2_353_893_904,
}
BSQ_VIT_COUNTS = {
    "bsqvit-128": 173_636_562,
    "bsqvit-b18": 174_816_210,
    "bsqvit-b36": 174_843_876,
    "bsqvit-l24sq": 179_542_872,
}


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "small.json", transformer=SMALL_SECTION, tokenizer=TOKENIZER_SECTION)


def round_trip(source, kind, config, tmp_path, suffix=".pth"):
    """The folder that the conversion writes, and the file that the way back gives."""
    main(str(source), kind, config, str(tmp_path / "ours"))
    back = tmp_path / f"back{suffix}"
    to_torch(str(back), str(tmp_path / "ours"), kind)
    return tmp_path / "ours", back


@pytest.mark.parametrize("name", COUNTS)
def test_published_transformers_have_their_parameter_counts(name):
    preset = PRESETS[name]
    assert parameter_count(transformer_links(preset.transformer, preset.block_chunks)) == COUNTS[name]


def test_the_published_tokenizers_have_their_parameter_counts():
    assert parameter_count(tokenizer_links(TOKENIZERS["d32"])) == 110_118_051
    assert parameter_count(tokenizer_links(TOKENIZERS["var"], False)) == 108_948_355


@pytest.mark.parametrize("name", BSQ_VIT_COUNTS)
def test_published_bsq_vits_have_their_parameter_counts(name):
    links = tokenizer_links(TOKENIZERS[name])
    assert parameter_count(links) == BSQ_VIT_COUNTS[name]
    assert our_shapes(links) == paths_of(trained.tokenizer_shapes(TOKENIZERS[name]))


def test_the_published_upscaler_has_its_parameter_count():
    links = upscaler_links(UPSCALERS["nsarm"])
    assert parameter_count(links) == 385_103_600
    assert our_shapes(links) == paths_of(trained.upscaler_shapes(UPSCALERS["nsarm"]))


@pytest.mark.parametrize("name", VAR_COUNTS)
def test_published_vars_have_their_parameter_counts(name):
    links = transformer_links(VAR[name].transformer, 0)
    assert parameter_count(links) == VAR_COUNTS[name]
    assert our_shapes(links) == paths_of(trained.transformer_shapes(VAR[name].transformer))


@pytest.mark.parametrize(
    ("file", "links"),
    [
        ("2b", lambda: transformer_links(PRESETS["2b"].transformer, 8)),
        ("8b", lambda: transformer_links(PRESETS["8b"].transformer, 8)),
        ("vae_d32", lambda: tokenizer_links(TOKENIZERS["d32"])),
        ("vae_d56", lambda: tokenizer_links(TOKENIZERS["d14_stride8_patchify"])),
        ("var_d16", lambda: transformer_links(VAR["var-d16"].transformer, 0)),
        ("var_d36", lambda: transformer_links(VAR["var-d36"].transformer, 0)),
        ("var_vae", lambda: tokenizer_links(TOKENIZERS["var"], False, 10)),
        ("bsqvit_128", lambda: tokenizer_links(TOKENIZERS["bsqvit-128"], code_group=9)),
        ("bsqvit_b36", lambda: tokenizer_links(TOKENIZERS["bsqvit-b36"])),
        ("bsqvit_l24sq", lambda: tokenizer_links(TOKENIZERS["bsqvit-l24sq"])),
        ("nsarm_upscaler", lambda: upscaler_links(UPSCALERS["nsarm"])),
    ],
)
def test_names_shapes_and_order_are_those_of_the_release(file, links):
    released = json.loads(gzip.decompress((NAMES / f"{file}.json.gz").read_bytes()))
    assert [[link.published, list(link.published_shape)] for link in links()] == [
        [name, shape] for name, shape in released.items()
    ]


def paths_of(shapes):
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {trees.parameter_name(path): leaf.shape for path, leaf in leaves}


def test_links_cover_exactly_our_parameters():
    shapes = paths_of(trained.transformer_shapes(SMALL))
    assert our_shapes(transformer_links(SMALL, 0)) == shapes
    assert our_shapes(tokenizer_links(TOKENIZER)) == paths_of(trained.tokenizer_shapes(TOKENIZER))


@pytest.mark.parametrize("links", [transformer_links(SMALL, 2, caption_rows=5), tokenizer_links(TOKENIZER)])
def test_every_link_goes_there_and_back(links):
    for link in links:
        if isinstance(link, Link):
            value = np.random.default_rng(0).standard_normal(link.published_shape).astype(np.float32)
            ours = link.to_ours(value)
            assert [array.shape for array in ours] == [link.shape] * len(link.ours)
            np.testing.assert_array_equal(link.to_published(ours), value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("chunks", [0, 1, 2, 4])
def test_a_transformer_comes_back_equal(dtype, chunks, config, tmp_path):
    state = transformer_state(dtype, chunks)
    folder, back = round_trip(write_pth(tmp_path / "a.pth", state), "transformer", config, tmp_path)
    assert_file_holds(back, state, "transformer")
    assert {tensor.dtype.name for tensor in open_tensors(folder, "").values()} == {dtype}


@pytest.mark.parametrize("nesting", [(), ("trainer", "gpt_fsdp"), ("trainer", "gpt_ema_fsdp")])
def test_nesting_prefix_and_order_come_back(nesting, config, tmp_path):
    state = transformer_state()
    shuffled = {f"module.{name}": state[name] for name in np.random.default_rng(0).permutation(list(state))}
    _, back = round_trip(write_pth(tmp_path / "a.pth", shuffled, nesting), "transformer", config, tmp_path)
    tensors = open_tensors(back, "transformer")
    assert tensors.nesting == nesting and tensors.prefix == "module."
    assert_same(dict(tensors), {name.removeprefix("module."): value for name, value in shuffled.items()})


@pytest.mark.parametrize("inner_names", [True, False])
@pytest.mark.parametrize("nesting", [("vae",), ("ema",), ()])
def test_a_tokenizer_comes_back_equal(inner_names, nesting, config, tmp_path):
    state = tokenizer_state("float16", inner_names=inner_names)
    folder, back = round_trip(write_pth(tmp_path / "a.pth", state, nesting), "tokenizer", config, tmp_path)
    assert_file_holds(back, state, "tokenizer")
    assert open_tensors(back, "tokenizer").nesting == nesting
    loaded = pretrained.load_tokenizer(folder)
    expected = params_from(state, tokenizer_links(TOKENIZER, inner_names))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)


SMALL_VIT = TokenizerConfig(
    bits=6, base_width=16, multipliers=(1,), decoder_multipliers=(2,), encoder_blocks=2, decoder_blocks=1,
    pixel_patch=4, architecture="vit", side=8, heads=2, hidden=24, scaled_gradient=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("nesting", "prefix"), [(("ema_state_dict",), "module.module."), (("state_dict",), "module."), ((), "")]
)
def test_a_bsq_vit_comes_back_equal(nesting, prefix, tmp_path):
    """As the release's training leaves it: its average with the prefix of two wrappers, what is trained with one's."""
    values, links = np.random.default_rng(0), tokenizer_links(SMALL_VIT, code_group=3)
    state = {
        prefix + link.published: link.values
        if isinstance(link, Buffer)
        else values.standard_normal(link.published_shape).astype(np.float32)
        for link in links
    }
    section = dataclasses.asdict(SMALL_VIT)
    config = write_config(tmp_path / "vit.json", tokenizer=section, scales="2")
    source = write_pth(tmp_path / "checkpoint.pt", state, nesting)
    folder, back = round_trip(source, "tokenizer", config, tmp_path)
    tensors = open_tensors(back, "tokenizer")
    assert (tensors.nesting, tensors.prefix) == (nesting, prefix)
    assert_same(dict(tensors), {name.removeprefix(prefix): value for name, value in state.items()})
    assert pretrained.load_tokenizer(folder).config == SMALL_VIT


def test_a_tokenizer_with_other_widths_in_its_decoder_comes_back_equal(tmp_path):
    """The release's `decoder_ch_mult` beside its `encoder_ch_mult`."""
    unequal = dataclasses.replace(TOKENIZER, multipliers=(1, 2, 2), decoder_multipliers=(2, 1, 3))
    state = tokenizer_state(config=unequal)
    assert state["decoder.conv_in.conv.weight"].shape == (96, 6, 3, 3)
    assert state["decoder.conv_out.conv.weight"].shape == (3, 64, 3, 3)
    assert state["encoder.conv_out.conv.weight"].shape == (6, 64, 3, 3)
    section = TOKENIZER_SECTION | {"multipliers": [1, 2, 2], "decoder_multipliers": [2, 1, 3]}
    config = write_config(tmp_path / "unequal.json", tokenizer=section)
    folder, back = round_trip(write_pth(tmp_path / "a.pth", state), "tokenizer", config, tmp_path)
    assert_file_holds(back, state, "tokenizer")
    loaded = pretrained.load_tokenizer(folder)
    assert loaded.config == unequal
    assert paths_of(loaded.params) == paths_of(trained.tokenizer_shapes(unequal))
    without = write_config(tmp_path / "equal.json", tokenizer=TOKENIZER_SECTION | {"multipliers": [1, 2, 2]})
    with pytest.raises(UserError, match="do not fit the tokenizer config"):
        main(str(tmp_path / "a.pth"), "tokenizer", without, str(tmp_path / "other"))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_come_back_as_one_file(suffix, config, tmp_path):
    state = transformer_state("bfloat16")
    save = save_safetensors if suffix == ".safetensors" else lambda part, path: write_pth(path, part)
    shards = write_shards(tmp_path / "shards", state, save, suffix)
    folder, back = round_trip(shards, "transformer", config, tmp_path, ".safetensors")
    assert_same(load_file(back), state, ordered=False)
    again = tmp_path / "again.pth"
    to_torch(str(again), str(folder), "transformer")
    assert_file_holds(again, state, "transformer", ordered=False)


def test_tensors_of_several_dtypes_keep_theirs(config, tmp_path):
    state = transformer_state("float16")
    for name in list(state):
        if name.endswith((".bias", "norm.weight")) or name.startswith("block_chunks.1.module.0.ffn"):
            state[name] = state[name].astype(np.float32)
    _, back = round_trip(write_pth(tmp_path / "a.pth", state), "transformer", config, tmp_path)
    assert_file_holds(back, state, "transformer")


@pytest.mark.parametrize("rows", [3, 8, 11])
def test_another_length_of_the_empty_caption_is_cut_or_filled(rows, config, tmp_path, caplog):
    state = transformer_state(caption_rows=rows)
    folder, back = round_trip(write_pth(tmp_path / "a.pth", state), "transformer", config, tmp_path)
    table = load_file(folder / "transformer.safetensors")["text/empty_caption"]
    assert table.shape == (8, 128)
    np.testing.assert_array_equal(table[:rows], state["cfg_uncond"][:8])
    if rows < 8:
        assert 0.5 < table[rows:].std() * 128**0.5 < 1.1
    assert_file_holds(back, state | {"cfg_uncond": state["cfg_uncond"][:8]}, "transformer")


def test_weights_trained_here_get_the_names_of_the_release(tmp_path):
    to_torch(str(tmp_path / "mine.pth"), "bundled", "transformer")
    to_torch(str(tmp_path / "mine_too.safetensors"), "bundled", "tokenizer")
    to_torch(str(tmp_path / "vae.pth"), "bundled", "tokenizer")
    assert open_tensors(tmp_path / "vae.pth", "tokenizer").nesting == ("vae",)
    bundled = pretrained.load_model("bundled")
    tensors = {name: t.read() for name, t in open_tensors(tmp_path / "mine.pth", "transformer").items()}
    assert "blocks.5.ffn.fc1.weight" in tensors  # 6 layers are no 4 chunks
    found = params_from(tensors, transformer_links(bundled.config, 0))
    jax.tree.map(np.testing.assert_array_equal, bundled.params, found)
    found = params_from(
        load_file(tmp_path / "mine_too.safetensors"), tokenizer_links(bundled.tokenizer.config)
    )
    jax.tree.map(np.testing.assert_array_equal, bundled.tokenizer.params, found)


def test_an_interrupted_conversion_leaves_nothing(config, tmp_path, monkeypatch):
    source = write_pth(tmp_path / "a.pth", transformer_state())
    folder, _ = round_trip(source, "transformer", config, tmp_path)
    whole = (folder / "transformer.safetensors").read_bytes()

    def interrupted(self, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(Link, "to_ours", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(str(source), "transformer", config, str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        main(str(source), "transformer", config, str(folder))
    assert (folder / "transformer.safetensors").read_bytes() == whole
    monkeypatch.setattr(Link, "to_published", lambda self, arrays: interrupted(self, arrays))
    with pytest.raises(KeyboardInterrupt):
        to_torch(str(tmp_path / "half.pth"), str(folder), "transformer")
    assert not list(tmp_path.glob("*half*"))


def test_conversion_holds_one_tensor_at_a_time(tmp_path):
    large = TransformerConfig(layers=16, width=128, heads=4, bits=6, text_channels=128, text_length=8)
    config = write_config(tmp_path / "c.json", transformer=dataclasses.asdict(large))
    state = transformer_state(config=large, chunks=4)
    largest, total = max(v.nbytes for v in state.values()), sum(v.nbytes for v in state.values())
    source = write_pth(tmp_path / "a.pth", state)
    (tmp_path / "first").mkdir()
    round_trip(source, "transformer", config, tmp_path / "first")  # what it imports stays, and is not counted
    tracemalloc.start()
    try:
        round_trip(source, "transformer", config, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 17e6 and peak < 4 * largest + 2e6
