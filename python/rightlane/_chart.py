"""A comparison as a picture: bars drawn as SVG, in HTML that loads nothing from anywhere."""

from __future__ import annotations

from html import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rightlane._compare import Comparison, Row

_ROW, _LABEL, _BAR, _FIGURES = 26, 130, 360, 190
"""Pixels: the height of a row; the widths of its name, of the longest bar, of what stands beside it."""

_PAGE_STYLE = """
body { margin: 1.5em }
@media (prefers-color-scheme: dark) { body { background: #15181e } }
"""

_STYLE = """
.rightlane-chart { font: 14px/1.45 system-ui, sans-serif; color: #1c2330; background: #fff;
  max-width: 46em; padding: 0.5em 0 }
.rightlane-chart h2 { font-size: 1em; margin: 1em 0 0.2em }
.rightlane-chart svg { max-width: 100%; height: auto; display: block }
.rightlane-chart text { font-size: 13px; fill: #1c2330 }
.rightlane-chart .bar { fill: #a9b4c6 }
.rightlane-chart .best .bar { fill: #2563c9 }
.rightlane-chart .best text { font-weight: 600 }
.rightlane-chart .note text { fill: #6a7384 }
@media (prefers-color-scheme: dark) {
  .rightlane-chart { color: #e6e9ef; background: #15181e }
  .rightlane-chart text { fill: #e6e9ef }
  .rightlane-chart .bar { fill: #56617a }
  .rightlane-chart .best .bar { fill: #6aa1ff }
  .rightlane-chart .note text { fill: #98a1b3 }
}
"""


def page(comparison: Comparison) -> str:
    """A whole page."""
    title = escape(comparison.verdict)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_PAGE_STYLE}</style></head>\n<body>{fragment(comparison)}</body></html>\n"
    )


def fragment(comparison: Comparison) -> str:
    """What a notebook shows."""
    return "".join(_parts(comparison))


def _parts(comparison: Comparison) -> Iterator[str]:
    yield f'<div class="rightlane-chart"><style>{_STYLE}</style>'
    yield f"<p>{escape(comparison.verdict)}</p>"
    if not comparison.ok:
        yield "<p><strong>A lane broke, or its results were not those of the serial loop.</strong></p>"
    yield "<h2>All items: time, less is better</h2>"
    yield _bars(comparison.rows, comparison.best, lambda row: row.time_s, _time_of)
    if comparison.sweep:
        yield "<h2>Sizes on a sample: tasks per second, more is better</h2>"
        yield _bars(comparison.sweep, _fastest(comparison.sweep), lambda row: row.tasks_per_s, _rate_of)
    yield f"<details><summary>as text</summary><pre>{escape(comparison.text)}</pre></details></div>"


def _fastest(rows: Iterable[Row]) -> Row | None:
    timed = [row for row in rows if row.tasks_per_s is not None]
    return max(timed, key=lambda row: row.tasks_per_s or 0.0, default=None)


def _bars(
    rows: Iterable[Row],
    best: Row | None,
    length: Callable[[Row], float | None],
    figures: Callable[[Row], str],
) -> str:
    rows = list(rows)
    longest = max((length(row) or 0.0 for row in rows), default=0.0) or 1.0
    drawn = []
    for number, row in enumerate(rows):
        top, at = number * _ROW, float(_LABEL)
        value = length(row)
        name = row.lane if row.size is None else f"{row.lane} × {row.size}"
        label = f'<text x="{_LABEL - 8}" y="{top + 17}" text-anchor="end">{escape(name)}</text>'
        if value is None:
            # What is long goes where the bar would be.
            kind, beside = "note", row.note
        else:
            kind, beside = ("best" if row is best else "row"), figures(row)
            length_px = max(1.0, _BAR * value / longest)
            at += length_px + 8
            label += (
                f'<rect class="bar" x="{_LABEL}" y="{top + 4}" width="{length_px:.1f}" '
                f'height="{_ROW - 8}" rx="2"><title>{escape(name)}: {escape(beside)}</title></rect>'
            )
        text = f'<text x="{at:.1f}" y="{top + 17}">{escape(_shortened(beside))}</text>'
        drawn.append(f'<g class="{kind}">{label}{text}</g>')
    width, height = _LABEL + _BAR + _FIGURES, len(rows) * _ROW
    return (
        f'<svg role="img" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(drawn)}</svg>'
    )


_MOST_LETTERS = 70


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"


def _time_of(row: Row) -> str:
    return f"{_duration(row.time_s or 0.0)}, {row.speed_up:.2f}×, {row.cores_used:.1f} cores"


def _duration(time_s: float) -> str:
    for unit, seconds in (("s", 1.0), ("ms", 1e-3)):
        if time_s >= seconds:
            return f"{time_s / seconds:.3g} {unit}"
    return f"{time_s * 1e6:.3g} µs"


def _rate_of(row: Row) -> str:
    return f"{row.tasks_per_s:,.0f}/s"
