"""A run, or two side by side, as one HTML page that needs nothing but itself.

What was limited, what it cost, who paid, and who should get more or less. Charts are
SVG, written here: a line of use under the line of the limit, and paging below. Every name is
escaped, control characters too; no script is in the page.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import pairwise

from epcgroup.observe.printable import printable
from epcgroup.observe.store import Point
from epcgroup.observe.study import LESS, MORE, Course, Study
from epcgroup.units import PAGE_SIZE, format_limit, format_size

_MOST = 200  # rows and charts; more is named by its number
_WIDTH, _HIGH, _LOW, _LEFT = 560, 120, 50, 56  # pixels of a chart
_STYLE = """
:root{color-scheme:light dark;--text:#1d1f21;--soft:#63676b;--line:#d9d9d4;--back:#fff;--used:#3f7fbf;--out:#7a4fa3;--hit:#c8402f}
@media(prefers-color-scheme:dark){:root{--text:#e7e8ea;--soft:#9aa1a9;--line:#363b41;--back:#1a1c1f;--used:#4f95dc;--out:#a678d6;--hit:#f06a55}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--text);background:var(--back);max-width:76em;margin:2em auto;padding:0 1em}
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}td,th{padding:.2em .7em;border-bottom:1px solid var(--line);text-align:right}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td:first-child,th:first-child,td.words{text-align:left;overflow-wrap:anywhere}
td:first-child{min-width:8em;max-width:24em}td.words{min-width:18em}
.soft,figcaption{color:var(--soft)}.more{color:var(--hit);font-weight:600}.less{color:var(--used);font-weight:600}
figure{display:inline-block;margin:.6em 1em .6em 0;vertical-align:top}svg{display:block}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
.runs{display:grid;grid-template-columns:repeat(auto-fit,minmax(34em,1fr));gap:2em}.scroll{overflow-x:auto}
"""  # noqa: E501 - a style sheet


def render(studies: Sequence[Study]) -> str:
    """The page of one run, or of two or more side by side."""
    title = " and ".join(_safe(study.name) for study in studies)
    body = [f"<h1>EPC: {title}</h1>"]
    if len(studies) > 1:
        body.append(_compared(studies))
    body.append('<div class="runs">')
    body += [_run(study) for study in studies]
    body.append("</div>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    whole = f"<head>{head}<style>{_STYLE}</style></head><body>{''.join(body)}</body>"
    return f'<!doctype html><html lang="en">{whole}</html>\n'


def _safe(text: str, most: int = 300) -> str:
    return html.escape(printable(text if len(text) <= most else text[:most] + "…"))


def _run(study: Study) -> str:
    facts = [f"{format_size(study.epc)} of EPC"] if study.epc else []
    facts += [f"policy {_safe(study.policy)}"] if study.policy else []
    parts = [f"<section><h2>{_safe(study.name)}</h2><p class=soft>{', '.join(facts)}</p>"]
    parts += [
        f"<p>{_safe(study.sentence(), 900)}</p>",
        _groups(study),
        _enclaves(study),
        _charts(study),
        "</section>",
    ]
    return "".join(parts)


# -- what was limited, what it cost, who should get more or less -------------------


def _groups(study: Study) -> str:
    limited = study.limited
    others = sorted((each for each in study.courses if each.last.limit is None), key=lambda each: each.path)
    columns = ("cgroup", "limit", "peak", "hits", "loaded", "evicted", "waiting", "should get")
    rows = [_group_row(course) for course in [*limited, *others][:_MOST]]
    return _table("What was limited, what it cost", columns, rows, len(study.courses))


def _group_row(course: Course) -> list[str]:
    last, advice = course.last, course.advice()
    mark = f'<span class="{advice.kind}">{advice.kind}</span>' if advice.kind in (MORE, LESS) else advice.kind
    return [
        _safe(course.path),
        format_limit(last.limit),
        format_size(last.peak),
        *(f"{course.since(name):,}" for name in ("events", "pages_in", "pages_out")),
        f"{course.waiting:.0%}",
        f"{mark}: {_safe(advice.why)}",
    ]


def _enclaves(study: Study) -> str:
    if not study.enclaves:
        return ""
    paid = sorted(study.enclaves, key=lambda enclave: (-enclave.pages_in, enclave.id))
    advice = {course.path: course.advice().kind for course in study.courses}
    rows = [
        [
            f"{enclave.id} ({_safe(enclave.command)}, {enclave.pid})",
            _safe(enclave.group),
            format_size(enclave.size),
            format_size(enclave.resident * PAGE_SIZE),
            f"{enclave.pages_in:,}",
            f"{enclave.pages_out:,}",
            "lost its memory" if enclave.disabled else advice.get(enclave.group, ""),
        ]
        for enclave in paid[:_MOST]
    ]
    columns = ("enclave", "cgroup", "size", "resident", "loaded", "evicted", "its cgroup should get")
    return _table("Who paid", columns, rows, len(paid))


def _compared(studies: Sequence[Study]) -> str:
    paths = sorted({course.path for study in studies for course in study.courses})
    columns = ["cgroup"]
    for study in studies:
        columns += [f"limit, {study.name}", "loaded", "waiting"]
    rows = []
    for path in paths[:_MOST]:
        row = [_safe(path)]
        for study in studies:
            course = study.course(path)
            if course is None:
                row += ["-", "-", "-"]
            else:
                row += [
                    format_limit(course.last.limit),
                    f"{course.since('pages_in'):,}",
                    f"{course.waiting:.0%}",
                ]
        rows.append(row)
    return _table("Side by side", columns, rows, len(paths))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], of: int) -> str:
    head = "".join(f"<th>{_safe(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td{_kind(cell)}>{cell}</td>" for cell in row) + "</tr>" for row in rows
    )
    more = f"<p class=soft>and {of - len(rows)} more</p>" if of > len(rows) else ""
    return f'<h3>{title}</h3><div class="scroll"><table><tr>{head}</tr>{body}</table></div>{more}'


def _kind(cell: str) -> str:
    return ' class="words"' if ": " in cell else ""


# -- over time -----------------------------------------------------------------------


def _charts(study: Study) -> str:
    shown = [course for course in study.courses if course.path != "/" and len(course.points) > 2]
    shown.sort(key=lambda course: (-course.since("pages_in"), -course.last.peak))
    if not shown:
        return ""
    begin = min(course.points[0].at for course in shown)
    end = max(course.points[-1].at for course in shown)
    return "<h3>Over time</h3>" + "".join(_chart(course, begin, end) for course in shown[: _MOST // 10])


def _chart(course: Course, begin: float, end: float) -> str:
    """Use below its limit; under it pages in upwards and pages out downwards."""
    points, span = course.points, max(end - begin, 1e-9)

    def x(at: float) -> float:
        return _LEFT + (at - begin) / span * (_WIDTH - _LEFT)

    top = max([point.high for point in points] + [point.limit or 0 for point in points] + [PAGE_SIZE]) * 1.05
    use = [(x(point.at), _HIGH * (1 - point.current / top)) for point in points if point.current is not None]
    limit = [(x(p.at), _HIGH * (1 - p.limit / top)) for p in points if p.limit is not None and p.limit <= top]
    rates = [(before.at, after.at, _rates(before, after)) for before, after in pairwise(points)]
    most = max([1.0, *(value for _, _, pair in rates for value in pair)])
    middle = _HIGH + 12 + _LOW / 2
    parts = [_line(use, "var(--used)"), _line(limit, "var(--hit)", "6 4", steps=True)]
    for number, (colour, sign) in enumerate((("var(--used)", -1), ("var(--out)", 1))):
        line: list[tuple[float, float]] = []
        for start, stop, pair in rates:
            height = middle + sign * pair[number] / most * _LOW / 2
            line += [(x(start), height), (x(stop), height)]
        parts.append(_line(line, colour))
    parts.append(
        f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{middle:.0f}" y2="{middle:.0f}" stroke="var(--line)"/>'
    )
    labels = (
        (12, format_size(int(top / 1.05))),
        (_HIGH, "0"),
        (middle - 6, f"{most:,.0f} in/s"),
        (middle + 16, "out/s"),
    )
    parts += [f'<text x="0" y="{y:.0f}">{text}</text>' for y, text in labels]
    label = f"{_safe(course.path)} over {span:.0f} s"
    size = f'width="{_WIDTH}" height="{_HIGH + _LOW + 14}"'
    drawing = f'<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f"<figure>{drawing}<figcaption>{label}</figcaption></figure>"


def _rates(before: Point, after: Point) -> tuple[float, float]:
    span = after.at - before.at
    if span <= 0:
        return 0.0, 0.0
    return max(0, after.pages_in - before.pages_in) / span, max(0, after.pages_out - before.pages_out) / span


def _line(points: Sequence[tuple[float, float]], colour: str, dash: str = "", *, steps: bool = False) -> str:
    if steps:
        points = (
            [
                place
                for (_, old), (at, new) in pairwise([points[0], *points])
                for place in ((at, old), (at, new))
            ]
            if points
            else []
        )
    if not points:
        return ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'
