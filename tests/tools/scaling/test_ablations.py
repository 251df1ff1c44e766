"""The comparison of repetitions that an ablation is."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from infinity_jax.tools.scaling import ablations, grid


def test_a_comparison_has_students_intervals_and_pairs_what_is_alike():
    losses = {"a": [1.0, 2.0, 3.0], "b": [0.9, 1.92, 2.88]}
    rows = [
        {"kind": kind, "seed": str(seed), "loss": loss}
        for kind, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    axes = ConfigDict(dict(kind=("a: train.steps=1", "b"), seed=("0", "1", "2")), sort_keys=False)
    config = grid.GridConfig(
        "base", axes, compare="kind", columns=("loss",), paper=("7", "8"), source="Table 1"
    )
    a, b = ablations.compare(rows, config)
    assert a["loss"]["mean"] == 2 and a["paper"] == "7" and a["runs"] == 3
    low, high = stats.t.interval(0.95, 2, loc=2, scale=stats.sem(losses["a"]))
    assert a["loss"]["interval"] == pytest.approx((high - low) / 2)
    assert a["loss"]["difference"] is None
    assert b["loss"]["difference"] == pytest.approx(-0.1)
    differences = np.subtract(losses["b"], losses["a"])
    assert b["loss"]["difference_interval"] == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(differences))
    # Far smaller than the spread between seeds, but the same in each: sure.
    lines = ablations.markdown([a, b], config).splitlines()
    assert lines[0] == "| kind | runs | loss | paper, Table 1 |"
    assert lines[2] == "| a | 3 | 2 ± 2.5 | 7 |" and lines[3].startswith("| b | 3 | **1.9 ± ")


def test_bold_is_the_best_of_a_column_and_not_what_differs():
    axes = ConfigDict(dict(kind=("a", "b", "c"), seed=("0", "1")), sort_keys=False)
    columns = ("kid", "retrieval_top1", "parameters", "bit_accuracy")
    config = grid.GridConfig("base", axes, compare="kind", columns=columns)
    worse = {"kid": 0.3, "retrieval_top1": 0.1, "parameters": 9.0, "bit_accuracy": 0.5}
    better = {"kid": 0.1, "retrieval_top1": 0.9, "parameters": 5.0, "bit_accuracy": 0.5}
    rows = [
        {"kind": kind, "seed": seed, **values}
        for kind, values in (("a", better), ("b", worse), ("c", better))
        for seed in ("0", "1")
    ]
    lines = ablations.markdown(ablations.compare(rows, config), config).splitlines()
    best = "**0.1 ± 0** | **0.9 ± 0** | **5 ± 0** | 0.5 ± 0 |"
    assert lines[2] == f"| a | 2 | {best}" and lines[4] == f"| c | 2 | {best}"
    assert lines[3] == r"| b | 2 | 0.3 ± 0 \* | 0.1 ± 0 \* | 9 ± 0 \* | 0.5 ± 0 |"


def test_a_comparison_of_single_runs_has_no_intervals(tmp_path):
    axes = ConfigDict(dict(kind=("a", "b", "c"), seed=("0",)), sort_keys=False)
    config = grid.GridConfig("base", axes, compare="kind", columns=("loss",))
    rows = [{"kind": "a", "seed": "0", "loss": 1.0}, {"kind": "c", "seed": "0", "loss": 3.0}]
    compared = ablations.compare(rows, config)
    assert [entry["label"] for entry in compared] == ["a", "c"]
    assert compared[1]["loss"]["interval"] is None and compared[1]["loss"]["difference_interval"] is None
    assert "paper" not in ablations.markdown(compared, config)
    ablations.draw(compared, config, tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").stat().st_size > 1000


def test_a_column_that_no_run_has_is_a_dash(tmp_path):
    """As with --config.pictures=0, which leaves all columns of pictures away."""
    axes = ConfigDict(dict(kind=("a", "b"), seed=("0",)), sort_keys=False)
    config = grid.GridConfig("base", axes, compare="kind", columns=("kid", "loss"))
    rows = [{"kind": "a", "seed": 0, "loss": 1.0}, {"kind": "b", "seed": 0, "loss": 3.0, "kid": None}]
    compared = ablations.compare(rows, config)
    assert all(entry["kid"]["values"] == [] and entry["kid"]["mean"] is None for entry in compared)
    assert "| b | 1 | - | 3 |" in ablations.markdown(compared, config)
    ablations.draw(compared, config, tmp_path / "comparison.png")
