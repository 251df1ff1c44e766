import dataclasses

import numpy as np
import pytest
from helpers import tables
from scipy.optimize import minimize_scalar

from infinity_jax.tools.scaling import checks, frontier, isoflop
from infinity_jax.tools.scaling.frontier import Cost
from infinity_jax.tools.scaling.law import Law
from infinity_jax.tools.scaling.runs import column

LAWS = (tables.LAW, Law(0.1, 30.0, 0.4, 2.0, 0.3), Law(0.0, 406.4, 0.34, 410.7, 0.28))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_closed_form_is_the_minimum(law, gamma):
    cost = Cost(6.0, gamma, 0.0)
    best = frontier.frontier_of(law, cost)
    for flop in (1e12, 1e18, 1e22):

        def loss(log_size, flop=flop):
            return law.loss(np.exp(log_size), cost.pictures(np.exp(log_size), flop)) - law.E

        found = minimize_scalar(loss, bounds=(0, 60), method="bounded", options={"xatol": 1e-9})
        assert np.log(best.parameters(flop)) == pytest.approx(found.x, abs=1e-4)
        assert cost.flop(best.parameters(flop), best.pictures(flop)) == pytest.approx(flop)


def test_with_cost_in_proportion_to_parameters_the_exponents_are_the_known_ones():
    best = frontier.frontier_of(Law(1.69, 406.4, 0.34, 410.7, 0.28), Cost(6.0, 1.0, 0.0))
    assert best.size_exponent == pytest.approx(0.28 / 0.62) and best.data_exponent == pytest.approx(
        0.34 / 0.62
    )
    known = (0.34 * 406.4 / (0.28 * 410.7)) ** (1 / 0.62)
    assert float(best.G) == pytest.approx(known)


def test_no_frontier_without_one_of_the_terms():
    assert np.isnan(frontier.frontier_of(Law(0.5, 0.0, 0.3, 2.0, 0.3), Cost(6.0, 1.0, 0.0)).G)


def test_cost_comes_from_the_flop_column():
    table = tables.rows()
    for row in table:
        row["flop"] = round(7e6 * row["parameters"] ** 0.9 * row["pictures"])
    cost = frontier.cost_of(tables.selected(table))
    assert (cost.kappa, cost.gamma) == pytest.approx((7e6, 0.9)) and cost.spread < 1e-6
    table[0]["flop"] *= 2
    assert frontier.cost_of(tables.selected(table)).spread > 0.2


def test_what_lies_outside_is_marked():
    runs = tables.selected(tables.rows())
    inside = (column(runs, "parameters").max(), column(runs, "pictures").min(), column(runs, "flop").max())
    assert frontier.outside(runs, *inside) == []
    assert frontier.outside(runs, inside[0] * 1.01, inside[1], inside[2]) == ["N"]
    assert frontier.outside(runs, inside[0], inside[1] / 1.01, inside[2] * 2) == ["D", "C"]
    flops = frontier.levels(runs)
    assert flops[-1] == pytest.approx(frontier.BEYOND * inside[2])


def quadratic(centre, steps=(100, 200, 400, 800, 1600)):
    """Runs whose loss at equal FLOP is a parabola in log N, lowest at centre(C)."""
    table = tables.rows(sizes=tuple(10**6 * 2**k for k in range(6)), steps=steps)
    for row in table:
        apart = np.log(row["parameters"] / centre(row["flop"]))
        row["validation_loss"] = 0.5 + 0.02 * apart**2 - 0.01 * np.log(row["flop"] / 1e12)
    return tables.selected(table)


def test_the_minimum_of_a_parabola_is_found():
    runs = quadratic(lambda _: 5e6)
    found = isoflop.isoflop(runs, np.tile(column(runs, "loss"), (20, 1)))
    assert len(found.parabolas) == isoflop.LEVELS and found.source == "ends"
    for parabola in found.parabolas:
        # The sizes meet at equal FLOP only between their runs, where the interpolation is not exact.
        assert parabola.minimum == pytest.approx(5e6, rel=0.05)
        measured = parabola.parameters[0] <= 5e6 <= parabola.parameters[-1]
        assert parabola.place == (
            "inside" if measured else "above" if parabola.parameters[-1] < 5e6 else "below"
        )
        assert parabola.minimum_interval == pytest.approx([parabola.minimum] * 2)


@pytest.mark.parametrize(("centre", "place"), [(1e3, "below"), (1e12, "above")])
def test_a_minimum_outside_the_sizes_is_marked(centre, place):
    runs = quadratic(lambda _: centre)
    found = isoflop.isoflop(runs, np.tile(column(runs, "loss"), (20, 1)))
    assert {parabola.place for parabola in found.parabolas} <= {place, "none"}
    assert found.exponent is None


def test_parabolas_agree_with_the_law():
    table = tables.rows(
        noise=0, sizes=tuple(10**5 * 2**k for k in range(9)), steps=(50, 150, 450, 1350, 4050)
    )
    runs = tables.selected(table)
    best = frontier.frontier_of(tables.LAW, frontier.cost_of(runs))
    found = isoflop.isoflop(runs, np.tile(column(runs, "loss"), (20, 1)))
    inside = [parabola for parabola in found.parabolas if parabola.minimum and parabola.place == "inside"]
    assert len(inside) >= 3
    for parabola in inside:
        assert parabola.minimum == pytest.approx(best.parameters(parabola.flop), rel=0.25)
    assert found.exponent == pytest.approx(best.size_exponent, abs=0.06)


def test_no_parabolas_where_flop_do_not_grow_with_the_pictures():
    runs = tables.selected([row | {"flop": 10**15} for row in tables.rows()])
    assert not isoflop.isoflop(runs, np.tile(column(runs, "loss"), (20, 1))).parabolas


def test_curves_are_read_where_runs_do_not_meet_at_equal_flop():
    close = {"sizes": tuple(10**5 * 8**k for k in range(4)), "steps": (100, 120, 150)}
    runs = tables.selected(tables.rows(**close))
    losses = np.tile(column(runs, "loss"), (10, 1))
    assert isoflop.isoflop(runs, losses).parabolas == ()
    close["sizes"] = tuple(10**5 * 2**k for k in range(4))
    runs = tables.selected(tables.with_curves(tables.rows(**close)))
    found = isoflop.isoflop(runs, losses)
    assert found.source == "curves" and len(found.parabolas) == isoflop.LEVELS


def test_curves_of_constant_rates_are_used_as_they_are():
    table = tables.with_curves(tables.rows(noise=0, rate_schedule="constant"), lift=0)
    runs = tables.selected(table)
    found = isoflop.isoflop(runs, np.tile(column(runs, "loss"), (10, 1)))
    assert found.source == "curves"
    one = found.parabolas[2]
    cost = frontier.cost_of(runs)
    expected = [tables.LAW.loss(size, cost.pictures(size, one.flop)) for size in one.parameters]
    np.testing.assert_allclose(one.losses, expected, rtol=1e-3)


def test_pearson_of_known_numbers():
    x = np.asarray([1.0, 2.0, 3.0, 4.0, 5.0])
    assert checks.pearson(x, -2 * x + 1) == pytest.approx(-1)
    # Anscombe's first set.
    x = np.asarray([10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5], float)
    y = np.asarray([8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68])
    assert checks.pearson(x, y) == pytest.approx(0.81642, abs=1e-5)
    assert checks.pearson(x, np.ones(11)) is None
    assert checks.pearson(x[:2], y[:2]) is None


def test_fisher_interval():
    # atanh(0.5) = 0.5493, over sqrt(25) times 1.96: from tanh(0.1573) to tanh(0.9413).
    assert checks.fisher_interval(0.5, 28) == pytest.approx([0.1560, 0.7356], abs=1e-3)
    assert checks.fisher_interval(0.5, 3) is None
    assert checks.fisher_interval(-1.0, 5) == [-1, -1]


def test_metrics_stand_beside_the_papers():
    runs = [
        dataclasses.replace(
            run, metrics={"genEval": 1 - run.loss, "metric_hpsv2": 30 - run.loss, "kid": run.loss}
        )
        for run in tables.selected(tables.rows())
    ]
    found = {one.metric: one for one in checks.correlations(runs)}
    assert found["genEval"].paper == -0.983 and found["metric_hpsv2"].paper == -0.979
    assert found["kid"].paper is None and found["kid"].lower_is_better
    assert found["genEval"].pearson == pytest.approx(-1) and found["kid"].pearson == pytest.approx(1)
