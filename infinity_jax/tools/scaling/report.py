"""The report of a scaling fit as one HTML page, pictures included."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from infinity_jax.tools.scaling.law import PERCENT
from infinity_jax.tools.scaling.plots import short, title

CAPTIONS = {
    "loss_steps": "Validation loss against training steps, one colour a size.",
    "loss_flop": "Validation loss against the FLOP of the training, by formula.",
    "law": "The fitted law and the ends of runs, along the pictures seen and along the parameters.",
    "residuals": "Measured over fitted loss. The cross is the run of most FLOP, by a fit that did not see it.",
    "isoflop": "Loss against parameters at equal FLOP, interpolated within each size, and the parabolas' minima.",
    "frontier": "Compute-optimal parameters and pictures, from the law and from the parabolas.",
    "metrics": "Metrics of generated pictures against the validation loss.",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #888; }
.wide { overflow-x: auto; } figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: 0.9rem; }
.warnings { background: #fff4e0; border-left: 4px solid #e09020; padding: 0.5rem 1rem 0.5rem 2rem; }
.outside { color: #a33; font-style: italic; }
"""


def page(found: Mapping[str, Any], pictures: Sequence[Mapping[str, bytes]]) -> str:
    """Writes the whole page.

    Args:
      found: content of fit.json.
      pictures: for each of its vocabularies SVG files by name.
    """
    groups = "".join(
        _group(group, drawn, found["paper_correlations"])
        for group, drawn in zip(found["vocabularies"], pictures, strict=True)
    )
    method = "".join(
        f"<li><b>{escape(name)}</b>: {escape(text)}</li>" for name, text in found["method"].items()
    )
    status = ", ".join(f"{count} {name}" for name, count in found["status"].items())
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Scaling law</title><style>{_STYLE}</style></head><body>
<h1>Scaling law</h1>
<p>{escape(found["table"])}: {found["rows"]} rows ({escape(status)}), {found["rows_fitted"]} fitted.
Losses are in nats a bit. Intervals are {PERCENT}%, from {found["resamples"]} resampled tables
(seed {found["seed"]}).</p>
{_warnings(found["warnings"])}{groups}
<h2>Method</h2><ul class="note">{method}</ul>
</body></html>
"""


def number(value: float | int | None) -> str:
    """Writes four digits that count; "-" for None."""
    return "-" if value is None else f"{value:.4g}"


def between(ends: Sequence[float] | None) -> str:
    """Writes an interval as "[low, high]"."""
    return "-" if ends is None else f"[{ends[0]:.3g}, {ends[1]:.3g}]"


def _group(group: Mapping[str, Any], drawn: Mapping[str, bytes], paper: Mapping[str, float]) -> str:
    figures = {name: _figure(name, drawn[name]) if name in drawn else "" for name in CAPTIONS}
    parts = [
        f"<h2>Vocabulary {escape(group['vocabulary'])}</h2>" if group["vocabulary"] else "",
        _warnings(group["warnings"]),
        _constants(group),
        *(figures[name] for name in ("loss_steps", "loss_flop", "law")),
        _held_out(group["held_out"]),
        figures["residuals"],
        _runs(group["runs"]),
        _isoflop(group["isoflop"]),
        figures["isoflop"],
        _frontier(group),
        figures["frontier"],
        _correlations(group["correlations"], paper),
        figures["metrics"],
    ]
    return "\n".join(part for part in parts if part)


def _estimated(name: str, found: Mapping[str, Any], *more: str) -> tuple[str, ...]:
    return (name, number(found["value"]), between(found["interval"]), *more)


def _warnings(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<ul class="warnings">{items}</ul>' if warnings else ""


def _figure(name: str, svg: bytes) -> str:
    data, caption = base64.b64encode(svg).decode(), escape(CAPTIONS[name])
    image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _constants(group: Mapping[str, Any]) -> str:
    meaning = {
        "E": "loss without end of parameters and pictures",
        "A": "of the term of parameters",
        "a": "its exponent",
        "B": "of the term of pictures",
        "b": "its exponent",
    }
    terms = group["terms_at_centre"]
    rows = [
        *(_estimated(name, found, meaning[name]) for name, found in group["constants"].items()),
        _estimated("A / N^a", terms["A / N^a"], f"at N = {short(terms['parameters'])}"),
        _estimated("B / D^b", terms["B / D^b"], f"at D = {short(terms['pictures'])}"),
    ]
    return (
        "<h3>L = E + A / N<sup>a</sup> + B / D<sup>b</sup></h3>"
        + _table(("constant", "value", "interval", ""), rows)
        + f'<p class="note">{group["rows"]} runs; robust standard deviation of the residuals'
        f" {group['robust_residual']:.2%}. A and B swing with their exponents;"
        " the terms in the middle of the runs do not.</p>"
    )


def _held_out(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    beyond = f", extrapolated in {', '.join(found['outside'])}" if found["outside"] else ""
    run = f"{short(found['parameters'])} parameters, {short(found['pictures'])} pictures, {found['flop']:.3g} FLOP"
    return (
        f"<h3>Held out: {escape(found['run'])}</h3><p>Fitted without it ({run}{beyond}), the law predicts"
        f" {found['predicted']:.4f} {between(found['interval'])}; measured {found['measured']:.4f}:"
        f" {found['relative_error']:+.2%}.</p>"
    )


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            escape(run["name"]),
            f"{run['parameters']:,}",
            f"{run['pictures']:,}",
            f"{run['flop']:.3g}",
            f"{run['loss']:.4f}",
            f"{run['fitted']:.4f}",
            f"{100 * (run['loss'] / run['fitted'] - 1):+.2f}%",
        )
        for run in runs
    ]
    return "<h3>Runs</h3>" + _table(
        ("run", "parameters N", "pictures D", "FLOP C", "loss", "fitted", "residual"), rows
    )


def _isoflop(found: Mapping[str, Any]) -> str:
    if not found["parabolas"]:
        return ""
    rows = []
    for parabola in found["parabolas"]:
        sizes, ends = parabola["parameters"], parabola["minimum_interval"]
        row = (f"{parabola['flop']:.3g}", escape(", ".join(parabola["sizes"])))
        if parabola["place"] == "inside":
            span = "-" if ends is None else f"[{short(ends[0])}, {short(ends[1])}]"
            rows.append((*row, short(parabola["minimum"]), span, number(parabola["lowest"])))
        else:  # How far outside a minimum lies says nothing.
            beyond = {"below": f"below {short(sizes[0])}", "above": f"above {short(sizes[-1])}"}
            minimum = beyond.get(parabola["place"], "no minimum")
            rows.append((*row, f'<span class="outside">{minimum}</span>', "-", "-"))
    slope = ""
    if found["exponent"] is not None:
        slope = (
            f"<p>Through the minima inside: N<sub>opt</sub> ~ C<sup>{found['exponent']:.3f}</sup>"
            f" {between(found['exponent_interval'])}.</p>"
        )
    return "<h3>IsoFLOP</h3>" + _table(("FLOP C", "sizes", "best N", "interval", "loss"), rows) + slope


def _frontier(group: Mapping[str, Any]) -> str:
    found, cost = group["frontier"], group["cost"]
    if found is None:
        return ""
    closed = [
        _estimated("N_opt exponent", found["size_exponent"]),
        _estimated("D_opt exponent", found["data_exponent"]),
        _estimated("G", found["G"]),
    ]
    # Of 49 points each sixth: enough to read off.
    rows = [
        (
            f"{point['flop']:.3g}",
            _interval(point, "parameters"),
            _interval(point, "pictures"),
            f"{point['loss']:.4f} {between(point['loss_interval'])}",
            f'<span class="outside">{"extrapolated: " if point["outside"] else ""}{", ".join(point["outside"])}</span>',
        )
        for point in found["points"][::6]
    ]
    return (
        "<h3>Compute-optimal frontier</h3>"
        f"<p>C = {cost['kappa']:.4g} N<sup>{cost['gamma']:.3f}</sup> D holds within {cost['spread']:.1%} for these"
        " runs; N<sub>opt</sub> = G (C / kappa)<sup>b / (a + gamma b)</sup>,"
        " D<sub>opt</sub> = G<sup>-gamma</sup> (C / kappa)<sup>a / (a + gamma b)</sup>.</p>"
        + _table(("closed form", "value", "interval"), closed)
        + _table(("FLOP C", "best N", "best D", "loss", ""), rows)
    )


def _interval(point: Mapping[str, Any], name: str) -> str:
    ends = point[f"{name}_interval"]
    return short(point[name]) + (f" [{short(ends[0])}, {short(ends[1])}]" if ends else "")


def _correlations(found: Sequence[Mapping[str, Any]], paper: Mapping[str, float]) -> str:
    rows = [
        (
            escape(title(one["metric"])),
            str(one["runs"]),
            "-" if one["pearson"] is None else f"{one['pearson']:.3f}",
            between(one["interval"]),
            "lower" if one["lower_is_better"] else "higher",
            "" if one["paper"] is None else f"{one['paper']:.3f}",
        )
        for one in found
    ]
    header = ("metric", "runs", "Pearson r", "interval", "better is", "paper")
    figures = ", ".join(f"{escape(name)} {value:.3f}" for name, value in paper.items())
    return (
        "<h3>Validation loss and metrics</h3>"
        + (_table(header, rows) if rows else "<p>The table has no metrics.</p>")
        + f'<p class="note">The paper\'s Fig. 10, sizes from 125M to 4.7B: {figures}.</p>'
    )
