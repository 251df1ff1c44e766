"""The arithmetic of scale schedules; test_golden.py compares them with the release's tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_jax import scales
from infinity_jax.errors import UserError


@given(st.sampled_from(scales.aspect_ratios()), st.sampled_from(sorted(scales.BUDGETS)))
def test_portrait_is_the_transpose_of_landscape(ratio, budget):
    h, w = ratio.split(":")
    transposed = scales.make_schedule(budget, f"{w}:{h}").sizes
    assert scales.make_schedule(budget, ratio).sizes == tuple((b, a) for a, b in transposed)


def test_offsets_and_scale_numbers_agree():
    schedule = scales.make_schedule("64px")
    assert schedule.sizes[-1] == (8, 8) and schedule.length == 130
    for k in range(schedule.n_scales):
        tokens = schedule.scale_of_token[schedule.offsets[k] : schedule.offsets[k + 1]]
        assert set(tokens) == {k} and len(tokens) == schedule.tokens[k]


def test_a_budget_keeps_the_positions_of_the_whole_preset():
    assert scales.make_schedule("0.06M").position_size == (64, 64)
    assert scales.make_schedule("64px").position_size == (8, 8)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_nearest_aspect_ratio_is_the_nearest(height, width):
    h, w = scales.parse_aspect_ratio(scales.nearest_aspect_ratio(height, width))
    for other in scales.aspect_ratios():
        a, b = scales.parse_aspect_ratio(other)
        assert abs(h / w - height / width) <= abs(a / b - height / width)


@pytest.mark.parametrize(
    ("preset", "ratio", "hint"),
    [
        ("1M", "9:16", "known: 3:1"),
        ("2M", "1:1", "0.06M"),
        ("64px", "2:1", "use 1:1"),
        ("1M", "wide", "HEIGHT:WIDTH"),
    ],
)
def test_unknown_presets_and_ratios_name_what_exists(preset, ratio, hint):
    with pytest.raises(UserError, match=hint):
        scales.make_schedule(preset, ratio)


def test_dense_schedule_contains_the_square_schedules():
    for preset in ("64px", "0.06M", "1M"):
        sizes = scales.make_schedule(preset).sizes
        assert set(sizes) <= set(scales.dense_schedule(sizes[-1][0]).sizes)


def test_the_first_scales_of_a_small_preset_have_its_positions():
    whole = scales.make_schedule("64px")
    assert scales.make_schedule("32px_of_64px") == whole.prefix(4)
    assert scales.make_schedule("48px_of_64px") == whole.prefix(5)
    assert scales.make_schedule("64px_of_64px") == whole
    assert scales.make_schedule("32px").position_size == (4, 4)  # a preset of its own
    assert scales.schedule_of_ratio("32px_of_64px", "2:1") == whole.prefix(4)


def test_presets_that_share_positions():
    assert {scales.positions_preset(preset) for preset in scales.BUDGETS} == {"1M"}
    assert {scales.positions_preset(preset) for preset in ("32px_of_64px", "48px_of_64px", "64px")} == {
        "64px"
    }
    assert scales.positions_preset("32px") == "32px"


@pytest.mark.parametrize("preset", ["40px_of_64px", "32px_of_1M", "px_of_64px", "32px_of_", "_of_64px"])
def test_first_scales_that_do_not_exist_are_refused(preset):
    with pytest.raises(
        UserError, match=r"no scale of .*there are: 8, 16, 24, 32, 48, 64|unknown scale preset"
    ):
        scales.make_schedule(preset)
