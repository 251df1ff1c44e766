import base64
import json
import re

import pytest
from helpers import tables
from PIL import Image

from infinity_jax.cli.main import main
from infinity_jax.errors import UserError
from infinity_jax.tools.scaling import fit, plots, table
from infinity_jax.tools.scaling.analysis import analyse

FIGURES = {"loss_steps", "loss_flop", "law", "residuals", "isoflop", "frontier", "metrics"}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A table with curves, metrics and one run that is not done."""
    path = tmp_path_factory.mktemp("sweep") / "runs.csv"
    rows = tables.with_curves(tables.rows(noise=0.001))
    rows = [row | {"kid": row["validation_loss"], "genEval": 1 - row["validation_loss"]} for row in rows]
    table.write(path, [*rows, {"name": "size=20m,length=2400,seed=0", "status": "planned"}])
    return path


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "new" / "folder"
    fit.main(sweep, out, resamples=40)
    return out


def test_writes_the_fit_figures_and_report(written):
    names = {path.name for path in written.iterdir()}
    assert names == {
        "fit.json",
        "report.html",
        *(f"{name}.{form}" for name in FIGURES for form in ("png", "svg")),
    }
    for name in FIGURES:
        with Image.open(written / f"{name}.png") as picture:
            assert picture.width > 600 and len(set(picture.convert("L").resize((64, 64)).tobytes())) > 10
        assert (written / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_axes_are_filled_by_the_runs():
    runs = tables.selected(tables.with_curves(tables.rows(noise=0.001)))
    figures = plots.figures(analyse("", runs, 0, resamples=20))
    for name in ("law", "residuals"):
        for axes in figures[name].axes:
            column = axes.get_xlabel().split()[0]
            values = [getattr(run, column) for run in runs]
            low, high = axes.get_xlim()
            assert min(values) / 2 < low < min(values) and max(values) < high < 20 * max(values)


def test_fit_json_has_constants_intervals_and_marks(written):
    found = json.loads((written / "fit.json").read_text())
    assert (found["rows"], found["rows_fitted"], found["status"]) == (16, 15, {"done": 15, "planned": 1})
    assert any("size=20m" in warning for warning in found["warnings"])
    (group,) = found["vocabularies"]
    for name, constant in group["constants"].items():
        low, high = constant["interval"]
        assert low <= constant["value"] <= high, name
    assert len(group["runs"]) == 15 and group["held_out"]["run"] == "size=8000000,length=2400,seed=0"
    points = group["frontier"]["points"]
    largest = max(run["flop"] for run in group["runs"])
    assert all(("C" in point["outside"]) == (point["flop"] > largest * (1 + 1e-6)) for point in points)
    assert any(not point["outside"] for point in points) and points[-1]["outside"] == ["N", "D", "C"]
    metrics = {one["metric"]: one for one in group["correlations"]}
    assert metrics["genEval"]["paper"] == -0.983 and metrics["kid"]["pearson"] == pytest.approx(1)


def test_the_report_needs_no_other_file(written):
    page = (written / "report.html").read_text()
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == len(FIGURES) == page.count("src=")
    assert all(base64.b64decode(picture).startswith(b"<?xml") for picture in pictures)
    assert "http" not in page.split("<body>")[1].split("base64")[0]
    assert "Compute-optimal frontier" in page and "-0.983" in page and "extrapolated" in page


@pytest.fixture
def one_figure(monkeypatch):
    """Only the figure of the law is drawn."""
    all_figures = plots.figures
    monkeypatch.setattr(plots, "figures", lambda analysis: {"law": all_figures(analysis)["law"]})


@pytest.mark.usefixtures("one_figure")
def test_the_same_table_gives_the_same_files(sweep, written, tmp_path):
    fit.main(sweep, tmp_path, resamples=40)
    for name in ("fit.json", "law.png", "law.svg"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes(), name


@pytest.mark.usefixtures("one_figure")
def test_each_vocabulary_has_its_own_fit(tmp_path):
    small, broken = (
        tables.rows(vocabulary=name, sizes=sizes, steps=(10, 20, 40))
        for name, sizes in (("d16 <b>", (10**5, 10**6, 10**7)), ("d32", (10**5,)))
    )
    table.write(tmp_path / "runs.csv", small + broken)
    found = fit.main(tmp_path / "runs.csv", tmp_path / "out", resamples=20)
    assert [group["vocabulary"] for group in found["vocabularies"]] == ["d16 <b>"]
    assert any("vocabulary d32" in warning for warning in found["warnings"])
    assert "<b>" not in (tmp_path / "out" / "report.html").read_text().split("<h2>Method")[0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((10**6,), "numbers of parameters are needed and the runs have only 1,000,000"),
        ((), "no row with status done"),
    ],
)
def test_too_few_runs_are_the_users_error(tmp_path, sizes, message):
    missing = {"name": "size=9,length=9", "status": "failed"}
    table.write(tmp_path / "runs.csv", [*tables.rows(sizes=sizes), missing])
    with pytest.raises(UserError, match=message) as error:
        fit.main(tmp_path / "runs.csv", tmp_path / "out")
    assert "failed: size=9,length=9" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file_is_the_users_error(sweep, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="name a folder"):
        fit.main(sweep, tmp_path / "out")


def test_command(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("infinity_jax.cli.main._prepare_process", lambda: None)
    called = []
    monkeypatch.setattr(fit, "main", lambda *arguments: called.append(arguments))
    assert main(["scaling", "--table", str(sweep), "--out", str(tmp_path), "--seed", "3"]) == 0
    assert called == [(str(sweep), str(tmp_path), 3)]
    monkeypatch.undo()
    monkeypatch.setattr("infinity_jax.cli.main._prepare_process", lambda: None)
    assert main(["scaling", "--table", str(tmp_path / "none.csv"), "--out", str(tmp_path)]) == 2
    assert "there is no table" in capsys.readouterr().err
