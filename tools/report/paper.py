"""The paper's numbers, from paper.csv, and what constants score, from regression_constants.csv."""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report.names import UserError, network_name

TABLES = ("I", "II", "II (v2 only)", "III")  # the others: numbers of text, README and notebooks
COLUMNS = ("table", "dataset", "script", "network", "head", "layers", "width") + (
    "function",
    "metric",
    "value",
    "epochs",
    "source",
    "note",
)
Constants = dict[tuple[str, int], float]  # (function, seed): MSE x 1e3 of the best constant


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper. `values`: (metric, epochs) to the number as printed."""

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
        values = {metric: value for (metric, _), value in self.values.items()}
        return next((values[name] for name in names if name in values), "")

    @property
    def epochs(self) -> str:
        """As printed; Table I prints the state at 100 and at 200 of 200 epochs."""
        return max((epochs for _, epochs in self.values), key=int_or_text)

    @property
    def head_name(self) -> str:
        """`FC` or `Spinal 6 × 8`."""
        return "FC" if self.head == "fc" else f"Spinal {self.layers} × {self.width}"

    @property
    def network_name(self) -> str:
        return network_name(self.network)

    @property
    def dataset_name(self) -> str:
        return self.dataset + (" (arXiv v2 only)" if "v2" in self.table else "")

    def describes(self, settings: dict[str, Any]) -> bool:
        """Whether a run with these settings is one of this row; what is not printed is free."""
        sizes = self.layers in (None, settings["layers"]) and self.width in (
            None,
            settings["width"],
        )
        return sizes and self.function in ("", settings.get("function"))


def int_or_text(text: str) -> tuple[int, str]:
    """Longer numbers are later."""
    return len(text), text


def read_lines(path: Path) -> list[dict[str, str]]:
    """The lines of paper.csv; raises UserError."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            lines = list(reader)
        for line in lines:
            if line["table"] in TABLES:
                float(line["value"].rstrip("kM"))
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return lines


def read_paper(path: Path) -> list[PaperRow]:
    """The rows of the paper's tables in paper.csv, in their order; raises UserError."""
    rows: dict[tuple, PaperRow] = {}
    for line in read_lines(path):
        if line["table"] in TABLES:
            layers, width = (int(line[key]) if line[key] else None for key in ("layers", "width"))
            names = [line[key] for key in ("table", "dataset", "script", "network", "head")]
            key = (*names, layers, width, line["function"])
            row = rows.setdefault(key, PaperRow(*key, values={}))
            row.values[line["metric"], line["epochs"]] = line["value"]
    return list(rows.values())


def default_of(row: PaperRow, paper: list[PaperRow]) -> PaperRow | None:
    """The FC row of the same network."""
    key = (row.table, row.script, row.network, row.function)
    for other in paper:
        if other.head == "fc" and (other.table, other.script, other.network, other.function) == key:
            return other
    return None


def printed_difference(row: PaperRow, paper: list[PaperRow]) -> float | None:
    """Spinal minus FC of the paper's averages, in points; of single numbers in v2."""
    both = (row, default_of(row, paper))
    means = [each.metric("accuracy_avg_pct", "accuracy_pct") if each else "" for each in both]
    return float(means[0]) - float(means[1]) if all(means) else None


def read_constants(path: Path) -> Constants:
    """(function, seed): what the best constant scores on that seed's fresh samples, × 1e-3."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = list(csv.DictReader(stream))
        return {(line["function"], int(line["seed"])): float(line["mse_x1e-3"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        text = f"cannot read {path}: {error!r}; make it again with tools/measure_costs.py"
        raise UserError(text) from None
