"""Cost: what costs.csv (tools/measure_costs.py) counts, against what the paper prints."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from report.names import UserError
from report.paper import PaperRow
from report.tables import Columns, Row, number

PARAMETERS: Columns = {
    "dataset": "Data set",
    "network": "Network",
    "head": "Head",
    "printed": "Printed",
    "counted": "Counted",
    "off": "Off by, %",
}


@dataclass(frozen=True)
class Cost:
    """One line of costs.csv."""

    script: str
    network: str
    head: str
    layers: int | None
    width: int | None
    parameters: int
    multiplications: int
    macs: int


def cost_of(line: dict[str, str]) -> Cost:
    """One line of costs.csv; raises ValueError or KeyError."""
    sizes = (int(line[key]) if line[key] else None for key in ("layers", "width"))
    counts = (int(line[key]) for key in ("parameters", "fc_multiplications", "macs"))
    return Cost(line["script"], line["network"], line["head"], *sizes, *counts)


def read_costs(path: Path) -> list[Cost]:
    """The lines of costs.csv; none if there is no such file. Raises UserError for a damaged one."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [cost_of(line) for line in csv.DictReader(stream)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        text = f"cannot read {path}: {error!r}; make it again with tools/measure_costs.py"
        raise UserError(text) from None


def find(
    costs: Iterable[Cost],
    script: str,
    network: str,
    head: str,
    layers: int | None = None,
    width: int | None = None,
) -> Cost | None:
    """The cost of a network; the sizes of an FC head are its own."""
    for cost in costs:
        same = (cost.script, cost.network, cost.head) == (script, network, head)
        sizes = (layers, width) in ((None, None), (cost.layers, cost.width))
        if same and (head == "fc" or sizes):
            return cost
    return None


def of_row(costs: Iterable[Cost], row: PaperRow) -> Cost | None:
    return find(costs, row.script, row.network, row.head, row.layers, row.width)


def parameter_rows(paper: list[PaperRow], costs: list[Cost], tolerance: float = 0.005) -> list[Row]:
    """Rows whose printed number of parameters is not that of the labelled network."""
    rows = []
    for row in paper:
        printed, cost = row.metric("parameters_printed"), of_row(costs, row)
        if not printed or cost is None:
            continue
        value = float(printed.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(printed[-1], 1.0)
        off = value / cost.parameters - 1
        if abs(off) > tolerance:
            cells = (row.dataset_name, row.network_name, row.head_name, printed)
            texts = (*cells, f"{cost.parameters:,}", number(100 * off, 1, "+"))
            rows.append(dict(zip(PARAMETERS, texts, strict=True)))
    return rows
