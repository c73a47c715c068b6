"""What a simulation found: tenants, the cgroups over time, a summary; on disk and back."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from epcgroup.atonce import AtOnce
from epcgroup.errors import BadInput, words_of

_TABLES, _SUMMARY = ("tenants.parquet", "groups.parquet"), "summary.json"
_SAID = {  # by a summary, at least
    "title",
    "profile",
    "policy",
    "epc_pages",
    "virtual_s",
    "accesses",
    "loads",
    "evictions",
    "interrupted",
}


@dataclass(frozen=True)
class Result:
    """Frames of polars: ``tenants`` (a row each), ``groups`` (a row per cgroup and sample).

    ``summary`` is plain data; ``summary["interrupted"]`` says whether it ended early.
    """

    tenants: pl.DataFrame
    groups: pl.DataFrame
    summary: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write tenants.parquet, groups.parquet and summary.json into a folder, over an older result.

        Each appears whole, summary.json last; while they change places there is none, so that a result
        whose parts are of two runs is seen by nobody, whatever ends us. Raises BadInput.
        """
        tables = {name: io.BytesIO() for name in _TABLES}
        self.tenants.write_parquet(tables["tenants.parquet"])
        self.groups.write_parquet(tables["groups.parquet"])
        contents = {name: table.getvalue() for name, table in tables.items()}
        contents[_SUMMARY] = (json.dumps(self.summary, indent=2) + "\n").encode()
        with contextlib.ExitStack() as places:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                written = []
                for name, content in contents.items():
                    written.append(place := AtOnce(folder / name))
                    places.callback(place.close)
                    place.file.write(content)
                    place.file.flush()
                (folder / _SUMMARY).unlink(missing_ok=True)
                for place in written:
                    place.appear()
            except OSError as error:
                raise BadInput(f"{folder}: cannot be written: {error.strerror}") from None

    @classmethod
    def read(cls, folder: Path) -> Result:
        """What ``write`` wrote. Raises BadInput for a folder without a result."""
        try:
            before, text = None, (folder / _SUMMARY).read_text(encoding="utf-8")
            while text != before:  # it was written again meanwhile
                tenants, groups = (pl.read_parquet(folder / name) for name in _TABLES)
                before, text = text, (folder / _SUMMARY).read_text(encoding="utf-8")
            summary = json.loads(text)
        except FileNotFoundError as error:
            name = error.filename or folder / "tenants.parquet"  # polars does not say
            raise BadInput(f"{folder}: no result of 'epcgroup sim' ({name} is missing)") from None
        except OSError as error:  # polars tells no errno
            raise BadInput(f"{folder}: no result of 'epcgroup sim' ({words_of(error)})") from None
        except (pl.exceptions.PolarsError, ValueError) as error:
            raise BadInput(f"{folder}: {error}") from None
        if not isinstance(summary, dict) or not summary.keys() >= _SAID:
            raise BadInput(f"{folder / _SUMMARY}: want at least {', '.join(sorted(_SAID))}")
        return cls(tenants, groups, summary)
