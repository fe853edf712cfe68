"""`report.html`: what a run measured, for people, in one file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .attention import MapPair, attention_figure
from .tables import format_value

__all__ = ["REPORT_FILE", "html_report"]

REPORT_FILE = "report.html"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d0d7de }
h3 { font-size: 1rem } table { border-collapse: collapse; margin: .6rem 0 } caption { text-align: left; color: #57606a }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #d8dee4; text-align: left } td.n { text-align: right }
pre { background: #f6f8fa; padding: .7rem; overflow-x: auto } img { max-width: 100% } small { color: #57606a }
"""


def html_report(
    results: Mapping[str, Any],
    *,
    curves: bytes | None = None,
    attention: Sequence[MapPair] = (),
    no_attention: str = "",
) -> str:
    """A page of the numbers of a results.json, with pictures.

    Args:
        results: see `results.measured`. Every number of its models and differences stands in a cell, rounded, with all
            digits in the cell's ``data-value``.
        curves: a PNG of the losses.
        attention: maps to draw.
        no_attention: why there are none.
    """
    title = (
        " from ".join(part for part in (results.get("recipe"), results.get("teacher")) if part) or "Results"
    )
    parts = [f"<h1>{escape(title)}</h1>", _facts(results)]
    if results.get("command"):
        parts.append(f"<pre>{escape(results['command'])}</pre>")
    parts.append(_section("Measured", _models(results), _differences(results)))
    if curves is not None:
        parts.append(_section("Losses", _image(curves, "losses by stage and objective")))
    parts += [
        _section(f"Classes: {m['model']}", _confusion(m), _classes(m))
        for m in results["models"]
        if m["classes"]
    ]
    if attention:
        parts.append(_section("Attention of the last layers", _maps(attention)))
    elif no_attention:
        parts.append(_section("Attention of the last layers", f"<p>{escape(no_attention)}</p>"))
    if results.get("stages"):
        parts.append(_section("Stages", _table(results["stages"])))
    if "settings" in results:
        told = _table(results["settings"]) if results["settings"] else "<p>Nothing but the defaults.</p>"
        parts.append(_section("Settings that differ from the defaults", told))
    if results.get("environment"):
        rows = [{"what": key, "which": value} for key, value in results["environment"].items()]
        parts.append(_section("Made with", _table(rows)))
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part)


def _facts(results: Mapping[str, Any]) -> str:
    data = ", ".join(
        f"{split}: {part['sequences']:,} sequences of {part['file']}"
        for split, part in results.get("data", {}).items()
    )
    facts = [("task", results.get("task")), ("data", data), ("seed", results.get("seed"))]
    shown = "; ".join(f"{name} {escape(str(value))}" for name, value in facts if value not in (None, ""))
    return f"<p>{shown}</p>" if shown else ""


def _cell(value: Any, shown: str | None = None, style: str = "") -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{'-' if value is None else escape(str(value))}</td>"
    text = escape(format_value(value) if shown is None else shown)
    return f'<td class="n" data-value="{value!r}"{style}>{text}</td>'


def _table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = ["".join(_cell(row.get(name)) for name in names) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{told}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _estimates(metrics: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, estimate in metrics.items():
        row |= {name: estimate["value"], f"{name}, low": estimate["low"], f"{name}, high": estimate["high"]}
    return row


def _models(results: Mapping[str, Any]) -> str:
    rows = [
        {
            "model": model["model"],
            **_estimates(model["metrics"]),
            **{key: model[key] for key in ("parameters", "MB", "sentences/s")},
        }
        for model in results["models"]
    ]
    told = ""
    if any(model["metrics"] for model in results["models"]):
        told = (
            f"on {results['measured on']}; low and high: {100 * results['confidence']:g}% interval, "
            f"bootstrap over sequences, {results['resamples']:,} resamples"
        )
    return _table(rows, told)


def _differences(results: Mapping[str, Any]) -> str:
    rows = [
        {"difference": f"{item['of']} - {item['minus']}", **_estimates(item["metrics"])}
        for item in results["differences"]
        if item["metrics"]
    ]
    return _table(rows, "on the same resamples for both") if rows else ""


def _classes(model: Mapping[str, Any]) -> str:
    return _table(model["classes"])


def _confusion(model: Mapping[str, Any]) -> str:
    if model["confusion"] is None:
        return ""
    names, counts = model["confusion"]["classes"], model["confusion"]["counts"]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = []
    for name, row in zip(names, counts, strict=True):
        shares = [value / max(sum(row), 1) for value in row]
        cells = [
            _cell(value, style=f' style="background: rgba(9, 105, 218, {share:.2f})"')
            for value, share in zip(row, shares, strict=True)
        ]
        lines.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    return (
        "<table><caption>rows: what is right; columns: what it was taken for</caption>"
        f"<thead><tr><th></th>{head}</tr></thead>\n<tbody>{''.join(lines)}</tbody></table>"
    )


def _maps(pairs: Sequence[MapPair]) -> str:
    rows = [{"text": " ".join(pair.tokens), "KL(teacher || student)": pair.divergence} for pair in pairs]
    told = "mean over heads; what each token (row) looks at (column)"
    return _table(rows, told) + "\n" + _image(attention_figure(pairs), "attention of teacher and student")


def _image(png: bytes, words: str) -> str:
    return f'<p><img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'
