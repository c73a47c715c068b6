"""What a simulation found: tenants, the cgroups over time, a summary; on disk and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from epcgroup.errors import BadInput, words_of

TENANT_COLUMNS = (
    "tenant cgroup kind status start_s build_s time_s ideal_s slowdown throughput "
    "pressure stall_s accesses faults retried loads evictions"
)


@dataclass(frozen=True)
class Result:
    """Frames of polars: ``tenants`` (a row each), ``groups`` (a row per cgroup and sample).

    ``summary`` is plain data; ``summary["interrupted"]`` says whether it ended early.
    """

    tenants: pl.DataFrame
    groups: pl.DataFrame
    summary: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write tenants.parquet, groups.parquet and summary.json into a folder."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.tenants.write_parquet(folder / "tenants.parquet")
            self.groups.write_parquet(folder / "groups.parquet")
            (folder / "summary.json").write_text(json.dumps(self.summary, indent=2) + "\n")
        except OSError as error:
            raise BadInput(f"{folder}: cannot be written: {error.strerror}") from None

    @classmethod
    def read(cls, folder: Path) -> Result:
        """What ``write`` wrote. Raises BadInput for a folder without a result."""
        try:
            return cls(
                pl.read_parquet(folder / "tenants.parquet"),
                pl.read_parquet(folder / "groups.parquet"),
                json.loads((folder / "summary.json").read_text()),
            )
        except FileNotFoundError as error:
            name = error.filename or folder / "tenants.parquet"  # polars does not say
            raise BadInput(f"{folder}: no result of 'epcgroup sim' ({name} is missing)") from None
        except OSError as error:  # polars tells no errno
            raise BadInput(f"{folder}: no result of 'epcgroup sim' ({words_of(error)})") from None
        except (pl.exceptions.PolarsError, json.JSONDecodeError) as error:
            raise BadInput(f"{folder}: {error}") from None
