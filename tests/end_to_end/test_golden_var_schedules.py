"""VAR's schedules of learning rate and weight decay, and what is decayed, beside the numbers of its release."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.golden_cases import go_through

from infinity_jax.checkpoints import trained
from infinity_jax.config import TransformerConfig
from infinity_jax.runtime import trees
from infinity_jax.tools.convert.links import Link
from infinity_jax.tools.convert.transformer_names import transformer_links
from infinity_jax.training import optim
from infinity_jax.training.transformer_step import not_a_kernel


def pytest_generate_tests(metafunc):
    go_through(metafunc, "var", {"schedules": "var_schedules"})


def test_schedules(schedules):
    """Rate and decay of many steps."""
    for given in schedules.info["learning_rate"]:
        # Ours is a difference from the peak, in float32.
        rounding = 1e-5 * given["lr"] + np.finfo(np.float32).eps * given["peak"]
        assert abs(rate_of(given) - given["lr"]) <= rounding, given
        config = optim.OptimConfig(weight_decay=given["wd"], final_weight_decay=given["wd_end"])
        decay = float(optim.weight_decay(config, given["max_it"])(given["it"]))
        assert decay == pytest.approx(given["weight_decay"], rel=1e-5), given


def rate_of(given: dict) -> float:
    """Our rate at a step of one of the release's schedules, whose names end with a share of the steps."""
    named = {"cos": ("cosine", 0), "exp": ("exponential", 0.15)}
    lines = {"lin": ("linear", 0.15), "lin0": ("linear", 0.05), "lin00": ("linear", 0)}
    bent = ("bent", given["sche"].removeprefix("lin"))
    schedule, share = {**named, **lines}.get(given["sche"], bent)
    config = optim.OptimConfig(
        learning_rate=given["peak"],
        warmup_steps=round(given["warmup"]),
        warmup_start=given["wp0"],
        schedule=schedule,
        hold=float(share),
        final_fraction=given["wpe"],
    )
    # The release's half cosine ends at the last step, ours after it.
    steps = given["max_it"] - (schedule == "cosine")
    return float(optim.learning_rate(config, steps)(given["it"]))


def test_what_is_decayed(schedules):
    small = TransformerConfig(
        layers=1, width=64, heads=2, bits=4, head="index", codes=8, positions="learned+scales:1-2",
        condition="class", classes=3, text_channels=2, text_length=1,
    )  # fmt: skip
    for name, given in schedules.info["weight_decay_groups_of_depth_1"].items():
        config = dataclasses.replace(small, adaln="own" if name == "own_aln" else "shared")
        params = trained.transformer_shapes(config)
        decayed = optim.decayed(params, not_a_kernel)
        flat = {trees.parameter_name(path): x for path, x in jax.tree.leaves_with_path(decayed)}
        ours = {True: set(), False: set()}
        for link in transformer_links(config, 0):
            if isinstance(link, Link):
                ours[flat[link.ours[0]]].add(link.published)
        assert ours == {True: set(given["decayed"]), False: set(given["not_decayed"])}, name
