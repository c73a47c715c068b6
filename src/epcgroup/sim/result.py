"""What a simulation found: tenants, the cgroups over time, a summary; on disk and back."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from epcgroup.errors import BadInput, words_of

_FILES = ("tenants.parquet", "groups.parquet", "summary.json")  # with the last one the result is whole
_SUMMARY = {
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
        """Write tenants.parquet, groups.parquet and summary.json into a folder.

        Killed on the way it leaves the result that was there, or none: never a part of each.
        """
        tenants, groups, summary = new = [folder / f".{name}.new" for name in _FILES]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.tenants.write_parquet(tenants)
            self.groups.write_parquet(groups)
            summary.write_text(json.dumps(self.summary, indent=2) + "\n")
            (folder / _FILES[-1]).unlink(missing_ok=True)
            for file, name in zip(new, _FILES, strict=True):
                file.replace(folder / name)
        except OSError as error:
            raise BadInput(f"{folder}: cannot be written: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                for file in new:
                    file.unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: Path) -> Result:
        """What ``write`` wrote. Raises BadInput for a folder without a result."""
        try:
            tenants, groups = (pl.read_parquet(folder / name) for name in _FILES[:2])
            summary = json.loads((folder / _FILES[2]).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            name = error.filename or folder / "tenants.parquet"  # polars does not say
            raise BadInput(f"{folder}: no result of 'epcgroup sim' ({name} is missing)") from None
        except OSError as error:  # polars tells no errno
            raise BadInput(f"{folder}: no result of 'epcgroup sim' ({words_of(error)})") from None
        except (pl.exceptions.PolarsError, ValueError) as error:
            raise BadInput(f"{folder}: {error}") from None
        if not isinstance(summary, dict) or not summary.keys() >= _SUMMARY:
            raise BadInput(f"{folder / _FILES[2]}: want at least {', '.join(sorted(_SUMMARY))}")
        return cls(tenants, groups, summary)
