"""The picture of usage and paging."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from epcgroup.errors import BadInput, MissingCapability
from epcgroup.observe import GroupView, History, Snapshot, plot


def history(tenants: int = 3, moments: int = 6) -> History:
    result = History()
    for moment in range(moments):
        groups = [GroupView("/", None, 0, 0)]
        groups += [
            GroupView(f"/t{n}", 16 << 20, moment * n << 20, moment * n << 20, pages_in=moment * n)
            for n in range(tenants)
        ]
        result.add(Snapshot(float(moment), "standard", 1024, 0, tuple(groups)))
    return result


def size(path: Path) -> tuple[int, int]:
    """Width and height from a PNG's header."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_panels_stand_side_by_side_then_in_rows(tmp_path: Path) -> None:
    plot.save(history(3), tmp_path / "three.png", notes=["a", "b"], marks=[(2.0, "now")], title="Three")
    plot.save(history(6), tmp_path / "six.png")
    three, six = size(tmp_path / "three.png"), size(tmp_path / "six.png")
    assert three[0] < six[0]
    assert six[1] > 1.5 * three[1]


def test_every_tenant_its_limit_and_its_notes_are_labelled(tmp_path: Path) -> None:
    plot.save(history(2), tmp_path / "x.svg", notes=["quiet one", "busy one"], marks=[(2.0, "it starts")])
    # Glyphs are outlines in SVG, but matplotlib leaves each text in a comment.
    text = (tmp_path / "x.svg").read_text()
    for words in ("t0", "t1", "quiet one", "busy one", "it starts", "limit 16M", "up to 5M", "no paging"):
        assert f"<!-- {words} -->" in text.replace("<!--  ", "<!-- "), words


def test_every_limit_that_was_in_force_is_labelled_where_it_ended() -> None:
    changing = History()
    for moment, limit in enumerate([None, 8 << 20, 8 << 20, 4 << 20, None, 4 << 20]):
        group = GroupView("/a", limit, 0, 0)
        changing.add(Snapshot(float(moment), "standard", 1024, 0, (group,)))
    assert plot._limits(changing.series("/a")) == [(2.0, 8 << 20), (3.0, 4 << 20), (5.0, 4 << 20)]


def test_group_without_limit_and_use_can_be_drawn(tmp_path: Path) -> None:
    empty = History()
    for moment in range(2):
        empty.add(Snapshot(float(moment), "v5", 1, 1, (GroupView("/idle", None, 0, 0),)))
    plot.save(empty, tmp_path / "idle.png")
    assert size(tmp_path / "idle.png")[0] > 100


def test_too_little_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="two snapshots"):
        plot.save(history(2, moments=1), tmp_path / "x.png")
    with pytest.raises(BadInput, match="a cgroup"):
        plot.save(history(0), tmp_path / "x.png")


def test_unwritable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none/x\.png: cannot be written"):
        plot.save(history(), tmp_path / "none" / "x.png")
    with pytest.raises(BadInput, match=r"x\.nonsense: cannot write"):
        plot.save(history(), tmp_path / "x.nonsense")


def test_missing_matplotlib_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingCapability, match=r"pip install 'epcgroup\[plot\]'"):
        plot.save(history(), tmp_path / "x.png")


def test_observe_does_not_load_matplotlib_by_itself() -> None:
    import subprocess

    code = "import sys, epcgroup.observe.plot, epcgroup.observe.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
