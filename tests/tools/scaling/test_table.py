import math

import pytest
from helpers import tables

from infinity_jax.errors import UserError
from infinity_jax.tools.scaling import runs, table

HEADER = "name,status,parameters,validation_loss,validation_curve,genEval,note\n"


def read(tmp_path, text):
    (tmp_path / "runs.csv").write_text(text, encoding="utf-8")
    return table.read(tmp_path / "runs.csv")


def test_what_is_written_is_read_again(tmp_path):
    written = {
        "name": "size=1,length=2",
        "status": "done",
        "flop": 10**18 + 1,
        "validation_loss": 0.1 + 0.2,
        "validation_curve": {50: 0.6931, 100: 0.68},
        "validation_loss_per_scale": [1.7, 1.2],
        "metric_fid": 0.5,
        "note": 'a "word", or two',
    }
    table.write(
        tmp_path / "runs.csv", [written, {"name": "other", "status": "failed", "error": "two\nlines"}]
    )
    first, second = table.read(tmp_path / "runs.csv")
    assert {key: value for key, value in first.items() if value is not None} == written
    assert second["error"] == "two\nlines" and second["flop"] is None and second["metric_fid"] is None
    assert (tmp_path / "runs.csv").read_text().splitlines()[0].split(",")[: len(table.COLUMNS)] == list(
        table.COLUMNS
    )
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]


def test_a_loss_that_was_not_finite_does_not_stop_the_table(tmp_path):
    # Metrics on disk have None in its place.
    row = {
        "name": "x",
        "status": "done",
        "validation_curve": {50: None},
        "validation_loss_per_scale": [None, 1],
    }
    table.write(tmp_path / "runs.csv", [row])
    (read_again,) = table.read(tmp_path / "runs.csv")
    assert math.isnan(read_again["validation_curve"][50]) and math.isnan(
        read_again["validation_loss_per_scale"][0]
    )


def test_reads_what_a_spreadsheet_makes_of_it(tmp_path):
    text = "\ufeffname,status,parameters,pictures,\r\nx, done ,1E+18,64.0,\r\n,,,,\r\n"
    (row,) = read(tmp_path, text)
    assert (row["status"], row["parameters"], row["pictures"]) == ("done", 10**18, 64)


def test_columns_of_numbers_are_metrics(tmp_path):
    rows = read(
        tmp_path, HEADER.replace("note", "note,kid") + "x,done,1,0.5,,0.25,words,0.1\ny,done,1,0.5,,,,\n"
    )
    assert set(table.metric_columns(rows)) == {"genEval", "kid"}
    assert [row["genEval"] for row in rows] == [0.25, None]
    assert rows[0]["note"] == "words"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column name"),
        ("name;status\nx;done\n", "a CSV file with commas"),
        ("name,status,name\n", "'name' twice"),
        (HEADER + "x,finished,1,0.5,,,\n", "line 2: status 'finished'"),
        (HEADER + "x,done,many,0.5,,,\n", "parameters 'many' is not a whole number"),
        (HEADER + "x,done,1.5,0.5,,,\n", "parameters '1.5' is not a whole number"),
        (HEADER + "x,done,-1,0.5,,,\n", "parameters -1 is not above 0"),
        (HEADER + "x,done,1,0.5,50-0.7,,\n", "validation_curve '50-0.7' is not STEP:LOSS"),
        (HEADER + "x,done,1,0.5,,0.3,\ny,done,1,0.5,,0;4,\n", "genEval '0;4' is not a number"),
        (HEADER + "x,done,1,0,5,,,\n", "8 cells, but 7 columns"),
    ],
)
def test_says_what_is_wrong(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


def test_a_missing_or_binary_file_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="there is no table"):
        table.read(tmp_path / "runs.csv")
    (tmp_path / "runs.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="not a CSV file"):
        table.read(tmp_path / "runs.csv")


def test_only_finished_runs_with_a_loss_are_fitted(tmp_path):
    done = tables.rows(sizes=(10, 20), steps=(1, 2))
    others = [
        {"name": "later", "status": "planned"},
        {"name": "diverged", "status": "done", "parameters": 1, "validation_loss": float("nan")},
    ]
    table.write(tmp_path / "runs.csv", done + others)
    groups, warnings = runs.select(table.read(tmp_path / "runs.csv"), "runs.csv")
    assert [run.name for run in groups[""]] == [row["name"] for row in done]
    assert "planned: later" in warnings[0] and "without a finite loss: diverged" in warnings[0]


def test_vocabularies_are_apart():
    table_rows = tables.rows(vocabulary="d16") + tables.rows(vocabulary="d32")
    groups, _ = runs.select([{"validation_curve": None} | row for row in table_rows], "runs.csv")
    assert {name: len(group) for name, group in groups.items()} == {"d16": 15, "d32": 15}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flop": None}, "has no flop; fill it in"),
        ({"name": "same"}, "'same' twice"),
        ({"validation_loss": -0.5}, "not above 0"),
        ({"status": "planned"}, "no row with status done"),
    ],
)
def test_rows_that_cannot_be_fitted(change, message):
    with pytest.raises(UserError, match=message):
        runs.select([{"validation_curve": None} | row | change for row in tables.rows()], "runs.csv")


def test_shortage_names_what_is_missing():
    assert runs.shortage(tables.selected(tables.rows())) is None
    few = runs.shortage(tables.selected(tables.rows(sizes=(10,), steps=(1, 2))))
    assert few is not None
    assert "6 finished runs are needed and there are 2" in few
    assert "3 different numbers of parameters are needed and the runs have only 10" in few
