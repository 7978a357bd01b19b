"""The paper's numbers, from paper.csv, and what constants score, from regression_constants.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report.names import UserError

PAPER_COLUMNS = {
    "table",
    "dataset",
    "script",
    "network",
    "head",
    "layers",
    "width",
    "function",
    "metric",
    "value",
    "epochs",
}


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper. `values` maps (metric, epochs) to the number as printed."""

    table: str
    dataset: str
    script: str
    network: str
    head: str
    layers: int | None
    width: int | None
    function: str
    values: dict[tuple[str, str], str] = field(hash=False, compare=False)

    def metric(self, *names: str) -> str:
        """The first of these metrics that the paper prints, else an empty string."""
        return next(
            (
                value
                for name in names
                for (metric, _), value in self.values.items()
                if metric == name
            ),
            "",
        )

    @property
    def epochs(self) -> str:
        """As printed; Table I prints the state at 100 and at 200 of 200 epochs."""
        return max((epochs for _, epochs in self.values), key=lambda text: (len(text), text))

    def describes(self, settings: dict[str, Any]) -> bool:
        """Whether a run with these settings is a run of this row; sizes that the paper does not print are free."""
        return (
            self.layers in (None, settings["layers"])
            and self.width in (None, settings["width"])
            and self.function in ("", settings.get("function"))
        )


def read_paper(path: Path) -> list[PaperRow]:
    """The rows of paper.csv, in their order; raises UserError."""
    rows: dict[tuple, PaperRow] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := PAPER_COLUMNS - set(reader.fieldnames or ()):
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            for record in reader:
                sizes = [int(record[key]) if record[key] else None for key in ("layers", "width")]
                key = (
                    record["table"],
                    record["dataset"],
                    record["script"],
                    record["network"],
                    record["head"],
                    *sizes,
                    record["function"],
                )
                row = rows.setdefault(key, PaperRow(*key, values={}))
                row.values[record["metric"], record["epochs"]] = record["value"]
                float(record["value"].rstrip("kM"))
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return list(rows.values())


def read_constants(path: Path) -> dict[tuple[str, int], float]:
    """(function, seed): what the best constant scores on that seed's fresh samples, × 1e-3; none without the file."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return {
                (row["function"], int(row["seed"])): float(row["mse_x1e-3"])
                for row in csv.DictReader(stream)
            }
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"cannot read {path}: {error!r}; make it again with tools/measure_costs.py"
        ) from None
