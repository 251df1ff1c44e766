import dataclasses
from typing import Any

import numpy as np
import pytest
from helpers import tables

from infinity_jax.tools.scaling import law as laws
from infinity_jax.tools.scaling.analysis import analyse
from infinity_jax.tools.scaling.checks import held_out
from infinity_jax.tools.scaling.law import Law
from infinity_jax.tools.scaling.runs import column

LAWS = (
    tables.LAW,
    Law(E=0.45, A=30.0, a=0.4, B=4.0, b=0.3),
    Law(E=0.10, A=1.5, a=0.12, B=8.0, b=0.35),
)
LARGE: dict[str, Any] = {
    "sizes": tuple(10**6 * 2**k for k in range(8)),
    "steps": tuple(100 * 3**k for k in range(6)),
}


def fitted(runs, resamples=200, seed=0):
    return laws.fit(
        column(runs, "parameters"), column(runs, "pictures"), column(runs, "loss"), seed, resamples
    )


def covered(fit, law):
    """Which of E, A, a, B, b lie in their intervals."""
    ends = [laws.interval(value) or [0, 0] for value in dataclasses.astuple(fit.samples)]
    return [low <= value <= high for (low, high), value in zip(ends, dataclasses.astuple(law), strict=True)]


@pytest.mark.parametrize("law", LAWS)
def test_without_noise_the_constants_come_out(law):
    fit = fitted(tables.selected(tables.rows(law, noise=0)), resamples=10)
    np.testing.assert_allclose(dataclasses.astuple(fit.law), dataclasses.astuple(law), rtol=1e-4)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("grid", [{}, LARGE], ids=["5x3", "8x6"])
def test_known_constants_lie_in_their_intervals(law, grid):
    fit = fitted(tables.selected(tables.rows(law, noise=0.001, seed=2, **grid)))
    assert all(covered(fit, law))
    assert abs(fit.law.a - law.a) < 0.1 and abs(fit.law.b - law.b) < 0.1


@pytest.mark.slow
def test_intervals_hold_what_they_promise():
    hits = [
        covered(fitted(tables.selected(tables.rows(seed=seed)), 80, seed), tables.LAW) for seed in range(30)
    ]
    # 95% of 30 are 28.5; these are few runs and few resamples.
    assert np.all(np.sum(hits, axis=0) >= 25)


def test_the_fit_is_a_minimum_of_hubers_loss():
    runs = tables.selected(tables.rows(noise=0.01, seed=3))
    fit = fitted(runs, 10)

    def cost(law):
        residual = law.loss(column(runs, "parameters"), column(runs, "pictures")) / column(runs, "loss") - 1
        # Huber's loss for a scale far above all residuals and for one far below, as the fit's own scale is inside.
        return np.where(
            np.abs(residual) < delta, residual**2 / 2, delta * (np.abs(residual) - delta / 2)
        ).sum()

    delta = 1.345 * fit.sigma
    best = cost(fit.law)
    # The scale is estimated before the last fit, so its cost is the one that the fit made least.
    for name in ("E", "A", "a", "B", "b"):
        for factor in (0.999, 1.001):
            assert cost(dataclasses.replace(fit.law, **{name: getattr(fit.law, name) * factor})) > best


def test_an_outlier_hardly_moves_the_fit():
    table = tables.rows(noise=0.001, **LARGE)
    straight = fitted(tables.selected(table), 10).law
    table[20]["validation_loss"] *= 1.3
    bent = fitted(tables.selected(table), 10).law
    np.testing.assert_allclose(
        dataclasses.astuple(bent)[2::2], dataclasses.astuple(straight)[2::2], rtol=0.05
    )


def test_the_same_seed_gives_the_same_intervals():
    runs = tables.selected(tables.rows())
    first, again, other = (fitted(runs, 50, seed).samples.a for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_held_out_largest_run():
    runs = tables.selected(tables.rows(noise=0.001))
    check = held_out(runs, 0, 200)
    assert check is not None and check.interval is not None
    assert check.flop == max(run.flop for run in runs) and check.runs_left_out == 1
    assert check.interval[0] <= check.measured <= check.interval[1]
    assert check.relative_error == pytest.approx(0, abs=0.01)
    assert check.outside == ["C"]


def test_held_out_runs_of_all_seeds_together():
    table = tables.rows(noise=0.001) + tables.rows(noise=0.001, seed=5)
    for number, row in enumerate(table):
        row["name"] = str(number)
    check = held_out(tables.selected(table), 0, 50)
    assert check is not None and check.runs_left_out == 2


def test_no_run_is_held_out_where_too_few_are_left():
    assert held_out(tables.selected(tables.rows(sizes=(10, 20, 30), steps=(1, 2, 3))[:6]), 0, 10) is None


@pytest.mark.parametrize(
    ("law", "noise", "warning"),
    [
        (Law(0.5, 0.0, 0.3, 3.0, 0.3), 0, "A = 0"),
        (Law(0.5, 3.0, 0.3, 0.0, 0.3), 0, "B = 0"),
        (Law(0.0, 5.0, 0.15, 3.0, 0.2), 0.001, "E"),
        (tables.LAW, 0.05, "is hardly determined"),
    ],
)
def test_a_degenerate_fit_is_said_and_not_an_error(law, noise, warning):
    found = analyse("", tables.selected(tables.rows(law, noise=noise)), 0, 40)
    assert any(text.startswith(warning) or warning in text for text in found.warnings), found.warnings


def test_the_fewest_runs_are_fitted():
    table = tables.rows(noise=0.01, sizes=(10**5, 10**6, 10**7))
    kept = [row for row in table if row["steps"] == 600 or row["parameters"] == 10**6]
    kept.append(table[0])
    found = analyse("", tables.selected(kept), 0, 300)
    assert all(np.isfinite(value).all() for value in dataclasses.astuple(found.fit.samples))
    assert any("no run was held out" in text for text in found.warnings)


def test_losses_that_rise_with_everything_are_no_error():
    table = tables.rows(noise=0)
    for number, row in enumerate(table):
        row["validation_loss"] = 0.5 + 0.01 * number
    found = analyse("", tables.selected(table), 0, 20)
    assert any(text.startswith("A = 0") for text in found.warnings)
    assert not np.isfinite(found.frontier.G)
