"""FLOP and parameters by formula, against numbers counted by hand."""

import dataclasses

import pytest

from infinity_jax import presets
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.scales import make_schedule
from infinity_jax.training import flops


@pytest.mark.parametrize(
    ("size", "budget", "products", "attention"),
    [
        ("125m", "0.06M", 103, 7),
        ("125m", "1M", 2085, 2525),
        ("2.2b", "0.06M", 2020, 48),
        ("2.2b", "1M", 40784, 18233),
        ("4.7b", "0.06M", 4216, 78),
        ("4.7b", "1M", 85140, 29454),
    ],
)
def test_blocks_need_the_flop_of_the_specification(size, budget, products, attention):
    counted = flops.forward_flops(presets.preset(size).transformer, make_schedule(budget), text_tokens=512)
    # The specification takes the feed-forward layer as exactly 4 widths; that of 2.2b is 8192 wide instead of 8320.
    width, ffn_width = presets.preset(size).transformer.width, presets.preset(size).transformer.ffn_width
    exactly = counted.block_products * 14 * width / (6 * width + 2 * ffn_width)
    assert exactly / 1e9 == pytest.approx(products, abs=0.5)
    assert counted.self_attention / 1e9 == pytest.approx(attention, abs=0.5)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("125m", 125_185_696), ("361m", 361_633_792), ("940m", 940_944_832), ("2.2b", 2_256_694_912)],
)
def test_parameters_are_those_of_the_paper(size, parameters):
    assert flops.parameter_count(presets.preset(size).transformer) == parameters


def test_every_part_by_hand():
    config = TransformerConfig(layers=3, width=64, heads=2, bits=4, text_channels=16, text_length=8)
    schedule = make_schedule("32px")  # 1 + 4 + 9 + 16 = 30 tokens
    assert flops.visible_pairs(schedule) == 1 * 1 + 4 * 5 + 9 * 14 + 16 * 30
    counted = flops.forward_flops(config, schedule, text_tokens=8)
    assert counted.cross_attention == 3 * 2 * (2 * 30 * 8 * 64)
    assert counted.embedding == 2 * 29 * 4 * 64 and counted.head == 2 * 30 * 64 * 8
    pool = 2 * (2 * 8 * 16 * 64) + 2 * (2 * 8 * 64) + 2 * 64 * 64
    condition = 2 * 8 * 16 * 64 + 2 * 8 * 64 * 64 + 2 * 64 * 8 * 64
    assert counted.text == pool + condition + 3 * 2 * (2 * 8 * 64 * 64)
    assert flops.train_flops(config, schedule, 8) == 3 * counted.total


def test_the_decoder_by_hand():
    config = TokenizerConfig(bits=4, base_width=32, multipliers=(1, 2), decoder_blocks=1)
    coarse, fine = 3 * 2, 6 * 4  # places of the two levels
    square = 9 * 64 * 64
    at_coarse = 9 * 4 * 64 + 2 * 2 * square + 2 * square  # in, middle, up_1
    at_fine = (
        4 * 64 * 64 + (9 * 64 * 32 + 9 * 32 * 32 + 64 * 32) + 9 * 32 * 3
    )  # upsampled, up_0 with shortcut, out
    assert flops.decoder_flops(config, (3, 2)) == 2 * (coarse * at_coarse + fine * at_fine)
    half_as_wide = dataclasses.replace(config, multipliers=(3, 1), decoder_multipliers=(1, 2))
    assert flops.decoder_flops(half_as_wide, (3, 2)) == flops.decoder_flops(config, (3, 2))


def test_the_encoder_by_hand():
    config = TokenizerConfig(bits=4, base_width=32, multipliers=(1, 2), encoder_blocks=1)
    coarse, fine = 3 * 2, 6 * 4
    square = 9 * 64 * 64
    at_fine = 9 * 3 * 32 + 2 * 9 * 32 * 32  # in, down_0
    at_coarse = 9 * 32 * 32 + (9 * 32 * 64 + square + 32 * 64) + 2 * 2 * square + 9 * 64 * 4
    assert flops.encoder_flops(config, (3, 2)) == 2 * (coarse * at_coarse + fine * at_fine)
    both = flops.encoder_flops(config, (3, 2)) + flops.decoder_flops(config, (3, 2))
    assert flops.tokenizer_train_flops(config, (3, 2)) == 3 * both
