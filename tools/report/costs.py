"""Cost: what costs.csv (tools/measure_costs.py) counts, and the work of each run for make."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from report.names import UserError
from report.paper import PaperRow
from report.tables import Columns, Row, number

IMAGES = {
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "kmnist": (60_000, 10_000),
    "qmnist": (60_000, 60_000),
    "emnist_digits": (240_000, 40_000),
    "emnist_letters": (124_800, 20_800),
    "emnist_balanced": (112_800, 18_800),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "tl_cifar10": (50_000, 10_000),
    "tl_cifar100": (50_000, 10_000),
    "tl_svhn": (73_257, 26_032),
    "tl_stl10": (5_000, 8_000),
    "tl_cinic10": (90_000, 90_000),
    "tl_oxford_flowers102": (6_552, 818),
    "tl_caltech101": (6_162, 820),
    "tl_stanford_cars": (8_144, 8_041),
    "tl_bird225": (31_316, 1_125),
    "tl_fruits360": (67_692, 22_688),
}  # training and evaluated images an epoch, rounded


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


def plan_file(paper: list[PaperRow], costs: list[Cost]) -> str:
    """plan.csv, which tells make what to start first: networks of the tables, the longest first.

    `pflop`: 1e15 operations of the published number of epochs with the dearest head: two for each
    multiply-accumulate, training three times the forward pass.
    """
    found: dict[tuple[str, str], tuple[float, int]] = {}
    for row in paper:
        key = row.script, row.network
        macs = [cost.macs for cost in costs if (cost.script, cost.network) == key]
        if macs and row.epochs and row.script in IMAGES:
            train, test = IMAGES[row.script]
            epochs = sum(map(int, row.epochs.split("+")))
            work = 2e-15 * max(macs) * epochs * (3 * train + test)
            found[key] = max(found.get(key, (0.0, 0)), (work, epochs))
    order = sorted((-work, key, epochs) for key, (work, epochs) in found.items())
    lines = [f"{key[0]},{key[1]},{epochs},{-work:.4g}\n" for work, key, epochs in order]
    return "script,network,epochs,pflop\n" + "".join(lines)
