"""Looking back at a run: what was limited, what it cost, who should get more or less."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from epcgroup.cli import main
from epcgroup.errors import BadInput
from epcgroup.observe import codec
from epcgroup.observe.model import EnclaveView, GroupView, Snapshot
from epcgroup.observe.page import render
from epcgroup.observe.plot import draw
from epcgroup.observe.store import Point, Store
from epcgroup.observe.study import (
    FITS,
    LESS,
    MORE,
    UNLIMITED,
    Course,
    Study,
    of_snapshots,
    of_store,
    to_csv,
)

MIB = 1 << 20
NOTHING = Point(0.0, None, None, *[0] * 10)
HOSTILE = "/<script>alert(1)</script>\x1b[2J"


def moment(at: float, **changes: float) -> Snapshot:
    """Cgroups: one that pages, one with room to spare, one that fits, one without a limit; counters rise."""
    paging = {
        "events": int(10 * at),
        "pages_in": int(500 * at),
        "pages_out": int(600 * at),
        "some_s": 0.3 * at,
    }
    groups = (
        GroupView("/", None, 14 * MIB, 14 * MIB, pages_in=int(500 * at)),
        GroupView("/tight", 8 * MIB, 8 * MIB, 8 * MIB, **{**paging, **changes}),  # type: ignore[arg-type]
        GroupView("/loose", 64 * MIB, 4 * MIB, 4 * MIB),
        GroupView("/fits", 4 * MIB, 2 * MIB, 3 * MIB, events=2),
        GroupView(HOSTILE, None, 0, 0),
    )
    enclave = EnclaveView(1, 77, "signer<b>", "/tight", 16 * MIB, 2000, 2000, 1, 8, pages_in=int(500 * at))
    return Snapshot(at, "v5", 4096, 512, groups, (enclave,), started=1e9)


def study(name: str = "run") -> Study:
    return of_snapshots(name, [moment(at) for at in (0.0, 5.0, 10.0)])


def advice(of: Study) -> dict[str, str]:
    return {course.path: course.advice().kind for course in of.courses}


def test_who_waits_at_its_limit_should_get_more_and_who_never_used_half_less() -> None:
    expected = {"/": UNLIMITED, "/tight": MORE, "/loose": LESS, "/fits": FITS, HOSTILE: UNLIMITED}
    assert advice(study()) == expected


def test_a_limit_that_was_hit_without_a_wait_fits() -> None:
    calm = of_snapshots("calm", [moment(at, some_s=0.0) for at in (0.0, 10.0)])
    assert advice(calm)["/tight"] == FITS


def test_what_was_used_under_an_earlier_limit_says_nothing_of_the_last() -> None:
    """Usage of 24M before the limit was lowered to 4M is no use of 24M of 4M."""
    courses = [(48, 20, 24), (48, 24, 24), (4, 2, 24), (4, 3, 24)]
    lowered = of_snapshots(
        "lowered",
        [
            Snapshot(at, "v17", 1, 1, (GroupView("/a", limit * MIB, used * MIB, peak * MIB),))
            for at, (limit, used, peak) in enumerate(courses)
        ],
    )
    assert lowered.courses[0].advice().why == "at most 3M of 4M"


def test_what_is_proposed_in_place_of_a_loose_limit_holds_the_peak() -> None:
    course = study().course("/loose")
    assert course is not None
    proposed = re.search(r": ([\d.]+)M would do", course.advice().why)
    assert proposed is not None
    assert 4 < float(proposed[1]) < 64


def test_counters_are_those_of_the_run_not_of_the_time_before() -> None:
    later = of_snapshots("later", [moment(at) for at in (100.0, 110.0)])
    course = later.course("/tight")
    assert course is not None
    assert (course.since("pages_in"), round(course.waiting, 2)) == (5000, 0.3)


def test_who_paid_most_is_said_in_the_sentence() -> None:
    assert "/tight paid most: it loaded 5,000 pages again and waited 30% of the time" in study().sentence()
    assert "/loose could do with less" in study().sentence()
    assert of_snapshots("idle", [Snapshot(0, "v5", 1, 1, (GroupView("/", None, 0, 0),))]).sentence() == (
        "Nothing was limited."
    )


def test_a_limit_under_which_nothing_ran_is_not_called_loose() -> None:
    """4K would do, it said: too little for any enclave."""
    unused = Course(
        "/a", tuple(Point(at, 1 << 20, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0) for at in (1.0, 2.0))
    )
    assert (unused.advice().kind, unused.advice().why) == (FITS, "nothing of 1M was used")


def test_a_report_of_one_moment_has_advice_too() -> None:
    assert advice(of_snapshots("one", [moment(10.0)]))["/tight"] == MORE


def test_history_of_a_server_says_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path / "history")
    for at in (0.0, 5.0, 10.0):
        store.add(moment(at))
    assert advice(of_store("served", store)) == advice(study())
    with pytest.raises(BadInput, match="no history"):
        of_store("served", Store(tmp_path / "empty"))
    store.close()


def test_every_sample_is_a_row() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(study()))))
    assert len(rows) == 15
    tight = [row for row in rows if row["cgroup"] == "/tight"]
    assert [row["pages_in"] for row in tight] == ["0", "2500", "5000"]
    assert {row["limit"] for row in rows if row["cgroup"] == "/"} == {""}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert "script" not in dict(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_obeys_no_name() -> None:
    page = render([study(), study("other")])
    reader = _Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.links == []
    assert "script" not in reader.tags
    assert {"svg", "table"} <= reader.tags
    assert "\x1b" not in page
    assert "signer&lt;b&gt;" in page
    assert "Side by side" in page
    assert "Side by side" not in render([study()])


def test_the_command_reports_a_served_machine_and_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "history")
    for at in (0.0, 5.0, 10.0):
        store.add(moment(at))
    store.close()
    run = tmp_path / "run.json"
    run.write_text(json.dumps(codec.snapshot_to_json(moment(10.0))))
    page, table = tmp_path / "r.html", tmp_path / "r.csv"
    assert main.main(["report", str(tmp_path), str(run), "--html", str(page)]) == 0
    assert "/tight: more: its limit of 8M was hit" in capsys.readouterr().out
    assert "Side by side" in page.read_text()
    assert main.main(["report", str(tmp_path), "--csv", str(table), "--last", "6"]) == 0
    assert table.read_text().startswith("cgroup,at,limit,current")
    picture = tmp_path / "r.png"
    assert main.main(["report", str(tmp_path), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main.main(["report", str(run), "--plot", str(picture)]) == 2
    assert "two snapshots" in capsys.readouterr().err, "a report in JSON is one moment"


def test_a_course_is_drawn_with_rates_and_without_the_time_in_which_it_was_not_there() -> None:
    points = tuple(replace(NOTHING, at=100.0 + at, current=at, pages_in=20 * at) for at in (0, 5, 10))
    course = Course("/a", (*points, replace(NOTHING, at=120.0)))
    series = course.series(100.0)
    assert (series.time_s, series.current) == ([0.0, 5.0, 10.0], [0, 5, 10])
    assert series.in_per_s == [0.0, 20.0, 20.0]
    assert series.out_per_s == [0.0, 0.0, 0.0]


def test_a_name_that_would_be_a_formula_is_drawn_as_it_is(tmp_path: Path) -> None:
    points = tuple(replace(NOTHING, at=at, current=4096) for at in (1.0, 2.0))
    draw([Course("/$x_{ \x1b" + "y" * 4000, points).series(0.0)], tmp_path / "r.png", title="$\\bad{")
    assert (tmp_path / "r.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["/none"], "neither a simulation"),
        (["a", "b", "--csv", "x"], "of one run"),
        (["a", "--last", "0"], "more than 0"),
    ],
)
def test_what_cannot_be_reported_is_told(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["report", *words]) == 2
    assert why in capsys.readouterr().err
