"""Where the time of a run went, what its devices computed, and traces of steps."""

import types

import numpy as np
import pytest
from helpers import toy_run

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import make_schedule
from infinity_jax.training import flops, goodput, profile, run_log
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.flops import StepCost


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes as the test lets it."""
    now = [100.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def test_shares_of_a_run(clock):
    account = goodput.Account()
    for source, seconds in {"start": 10, "compile": 20, "hooks": 3, "checkpoints": 7}.items():
        with account.spent(source):
            clock(seconds)
    account.count_from_here()
    account.took(StepCost(100, 10**9, 2 * 10**9))
    account.took(StepCost(300, 3 * 10**9, 4 * 10**9))
    with account.spent("data"):
        clock(8)
    clock(52)
    line = account.line(steps=2, examples=30)
    assert line["seconds_per_step"] == 30 and line["images_per_second"] == 0.5
    assert line["goodput"] == pytest.approx(0.52), "of 100 s, 40 were no training and 8 waited"
    assert (line["start_share"], line["compile_share"]) == pytest.approx((0.1, 0.2))
    assert (line["hooks_share"], line["checkpoint_share"]) == pytest.approx((0.03, 0.07))
    assert line["data_wait_share"] == pytest.approx(8 / 60) and line["text_wait_share"] == 0
    assert line["tokens_per_second"] == pytest.approx(400 / 60)
    assert line["model_flops_per_second"] == pytest.approx(4e9 / 60)
    assert "mfu" not in line, "nobody knows the peak of a CPU"
    assert line.keys() <= set(run_log.TIMING_KEYS)
    clock(10)
    following = account.line(steps=1, examples=15)
    assert following["data_wait_share"] == 0 and following["seconds_per_step"] == 10
    assert "tokens_per_second" not in following, "of a step whose work nobody told"


def test_the_step_that_is_queued_already_counts_for_the_next_line(clock):
    account = goodput.Account()
    for tokens in (100, 900):
        account.took(StepCost(tokens, 0, 0))
    clock(1)
    assert account.line(1, 1)["tokens_per_second"] == 100
    clock(1)
    assert account.line(1, 1)["tokens_per_second"] == 900


def test_a_wait_that_a_running_step_hides_is_none(clock):
    account = goodput.Account()
    for running in (True, False):
        account.queued({"loss": types.SimpleNamespace(is_ready=lambda running=running: not running)})
        with account.spent("data"):
            clock(5)
        with account.spent("hooks"):
            clock(1)
    line = account.line(1, 1)
    assert line["data_wait_share"] == pytest.approx(5 / 12) and line["hooks_share"] == pytest.approx(2 / 12)


def test_only_the_first_call_of_each_shape_compiles(clock):
    account = goodput.Account()
    for side in (2, 2, 3):
        with account.queueing({"image": np.zeros((1, side))}):
            clock(5)
    clock(5)
    assert account.line(3, 3)["compile_share"] == pytest.approx(0.5)


def test_shares_of_the_peak():
    def kind(name):
        return [types.SimpleNamespace(device_kind=name)] * 2

    costs = [StepCost(1, 10**15, 2 * 10**15)]
    values = goodput.rates(costs, 2.0, kind("NVIDIA H100 80GB HBM3"))
    assert values["mfu"] == pytest.approx(0.5e15 / (2 * 989e12)) and values["hfu"] == 2 * values["mfu"]
    assert goodput.rates(costs, 2.0, kind("TPU v5 lite"))["mfu"] == pytest.approx(0.5e15 / (2 * 197e12))
    for unknown in ("cpu", "NVIDIA H100 PCIe", "TPU v99"):
        assert not goodput.rates(costs, 2.0, kind(unknown)).keys() & {"mfu", "hfu"}


def test_cost_of_a_step():
    schedule = make_schedule("64px")
    model = TransformerConfig(layers=2, width=64, heads=4, bits=8, text_channels=16, text_length=8)
    plain = flops.step_cost(model, schedule, 8, batch=4)
    assert plain.tokens == 4 * schedule.length
    assert plain.model_flops == plain.hardware_flops == 4 * flops.train_flops(model, schedule, 8)
    again = flops.step_cost(
        TransformerConfig(layers=2, width=64, heads=4, bits=8, text_channels=16, text_length=8, remat="block"),
        schedule, 8, 4, encoders=1000,
    )  # fmt: skip
    forward = flops.forward_flops(model, schedule, 8)
    blocks = forward.block_products + forward.self_attention + forward.cross_attention
    assert again.model_flops == plain.model_flops
    assert again.hardware_flops - plain.hardware_flops == 4 * (blocks + 1000)


def test_flops_of_the_pictures_encoder():
    """Against a count by hand of a tokenizer of two levels, one block each."""
    config = TokenizerConfig(bits=4, base_width=32, multipliers=(1, 2), encoder_blocks=1, pixel_patch=1)
    fine, coarse = 4 * 36, 36  # places, for 6 x 6 tokens
    kernels = (
        (fine, 27 * 32), (fine, 2 * 288 * 32), (coarse, 288 * 32),
        (coarse, 288 * 64 + 576 * 64 + 32 * 64), (coarse, 4 * 576 * 64), (coarse, 576 * 4),
    )  # fmt: skip
    assert flops.encoder_flops(config, (6, 6)) == sum(2 * places * size for places, size in kernels)


def test_profile_of_some_steps(tmp_path):
    toy_run.run(tmp_path, 4, log_every=1, profile="2:3")
    [trace] = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
    lines = run_log.read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(0 <= line["goodput"] <= 1 for line in lines)


def test_mistakes_of_profile():
    for text in ("3", "4:3", "0:2", "a:b", "1:2:3"):
        with pytest.raises(UserError, match=r"train.profile is .* write START:STOP"):
            TrainConfig(steps=1, batch_size=1, profile=text)
    assert profile.steps_of("") is None and profile.steps_of("20:24") == (20, 24)
