"""`infinity-jax scaling`: from a table of runs to fit.json, figures and a report."""

import collections
import io
import os
import re
from pathlib import Path
from typing import Any

import matplotlib
from absl import logging
from matplotlib.figure import Figure

from infinity_jax.errors import UserError
from infinity_jax.files import atomic
from infinity_jax.tools.scaling import analysis as summary
from infinity_jax.tools.scaling import law, plots, report, table
from infinity_jax.tools.scaling.analysis import Analysis, analyse
from infinity_jax.tools.scaling.runs import select, shortage

FIT, REPORT = "fit.json", "report.html"


def main(
    table_file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    seed: int = 0,
    resamples: int = law.RESAMPLES,
) -> dict[str, Any]:
    """Fits the law to the runs of a table and writes fit.json, report.html and the figures (PNG, SVG) into `out`.

    Returns:
      what fit.json holds; the same table and seed give the same.
    Raises:
      UserError: there is no such table, a cell of it is wrong, or the runs of no vocabulary are enough for a fit.
    """
    out = Path(out)
    rows = table.read(table_file)
    groups, warnings = select(rows, str(table_file))
    lacks = {vocabulary: shortage(runs) for vocabulary, runs in groups.items()}
    enough = {vocabulary: runs for vocabulary, runs in groups.items() if lacks[vocabulary] is None}
    short = [f"vocabulary {name}: {lack}" if name else lack for name, lack in lacks.items() if lack]
    if not enough:
        raise UserError(f"{table_file} has too few runs for a fit: {'; '.join([*short, *warnings])}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out {out} is a file, or lies in one; name a folder") from None
    analyses = [analyse(vocabulary, runs, seed, resamples) for vocabulary, runs in sorted(enough.items())]
    found = {
        "table": str(table_file),
        "rows": len(rows),
        "rows_fitted": sum(len(analysis.runs) for analysis in analyses),
        "status": dict(collections.Counter(row["status"] for row in rows)),
        "seed": seed,
        "resamples": resamples,
        "method": summary.METHOD,
        "paper_correlations": summary.PAPER_FIGURES,
        "warnings": [*warnings, *short],
        "vocabularies": [summary.describe(analysis) for analysis in analyses],
    }
    pictures = [_draw(analysis, out, prefixed=len(analyses) > 1) for analysis in analyses]
    atomic.write_json(out / FIT, found)
    atomic.write_bytes(out / REPORT, report.page(found, pictures).encode())
    _say(found, out)
    return found


def _draw(analysis: Analysis, out: Path, prefixed: bool) -> dict[str, bytes]:
    """Writes the figures; gives the SVG of each by name."""
    drawn = {}
    prefix = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', analysis.vocabulary) or 'none'}_" if prefixed else ""
    for name, figure in plots.figures(analysis).items():
        atomic.write_bytes(out / f"{prefix}{name}.png", _rendered(figure, "png"))
        drawn[name] = _rendered(figure, "svg")
        atomic.write_bytes(out / f"{prefix}{name}.svg", drawn[name])
    return drawn


def _rendered(figure: Figure, form: str) -> bytes:
    content = io.BytesIO()
    with matplotlib.rc_context(plots.STYLE):
        # No date, so that the same table gives the same file.
        figure.savefig(content, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    # The places that were found serve the next format: finding them is most of the work.
    figure.set_layout_engine("none")
    return content.getvalue()


def _say(found: dict[str, Any], out: Path) -> None:
    for group in found["vocabularies"]:
        name = f"{group['vocabulary']}: " if group["vocabulary"] else ""
        constants = ", ".join(
            f"{letter} {report.number(constant['value'])} {report.between(constant['interval'])}"
            for letter, constant in group["constants"].items()
        )
        logging.info("%s%d runs: %s", name, group["rows"], constants)
        for warning in group["warnings"]:
            logging.warning("%s%s", name, warning)
    for warning in found["warnings"]:
        logging.warning("%s", warning)
    logging.info("%s", out / REPORT)
