"""Cost: what results/costs.csv (tools/measure_costs.py) says of the paper's claims, and the work of each run."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from report.names import NETWORKS, UserError
from report.paper import PaperRow
from report.rows import head_name
from report.tables import ROW, Row, columns, number

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


def read_costs(path: Path) -> list[Cost]:
    """The lines of costs.csv; none if there is no such file. Raises UserError for a damaged one."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [
                Cost(
                    line["script"],
                    line["network"],
                    line["head"],
                    *(int(line[key]) if line[key] else None for key in ("layers", "width")),
                    *(int(line[key]) for key in ("parameters", "fc_multiplications", "macs")),
                )
                for line in csv.DictReader(stream)
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"cannot read {path}: {error!r}; make it again with tools/measure_costs.py"
        ) from None


def find(
    costs: Iterable[Cost],
    script: str,
    network: str,
    head: str,
    layers: int | None = None,
    width: int | None = None,
) -> Cost | None:
    """The cost of a network; the sizes of an FC head are its own."""
    return next(
        (
            cost
            for cost in costs
            if (cost.script, cost.network, cost.head) == (script, network, head)
            and (head == "fc" or (layers, width) in ((None, None), (cost.layers, cost.width)))
        ),
        None,
    )


def of_row(costs: Iterable[Cost], row: PaperRow) -> Cost | None:
    return find(costs, row.script, row.network, row.head, row.layers, row.width)


CLAIM = columns("claim: The paper's claim; printed: Printed; counted: Counted; verdict: Verdict")
CLAIMS = (  # words, printed %, script, network, layers, width; True: what is left, not what is saved
    ("regression: fewer multiplications", 35.5, "synthetic_regression", "mlp", 6, 50, False),
    (
        "MNIST, CNN, 6 × 8: over 48.5 % fewer multiplications in the head",
        48.5,
        "mnist",
        "cnn",
        6,
        8,
        False,
    ),
    ("CIFAR-100, VGG-19: multiplications of the head left", 7, "cifar100", "vgg19", 4, 512, True),
    ("the same with CIFAR-10's ten classes", 7, "cifar10", "vgg19", 4, 512, True),
    (
        "v2, DenseNet 8 × 16: fewer (our guess of the network)",
        87,
        "cifar10",
        "densenet",
        8,
        16,
        False,
    ),
    (
        "v2, DenseNet 8 × 64: fewer (our guess of the network)",
        44.1,
        "cifar10",
        "densenet",
        8,
        64,
        False,
    ),
    (
        "v2, CIFAR-10, CNN of PyTorch's tutorial, 6 × 20: fewer",
        4.8,
        "cifar10",
        "lenet",
        6,
        20,
        False,
    ),
)


def claim_rows(costs: list[Cost]) -> list[Row]:
    """Every claim on cost that the paper prints, recounted from costs.csv."""
    rows: list[Row] = []
    for claim, printed, script, network, layers, width, left in CLAIMS:
        spinal, fc = (
            find(costs, script, network, "spinal", layers, width),
            find(costs, script, network, "fc"),
        )
        if spinal and fc:
            share = 100 * spinal.multiplications / fc.multiplications
            counted = share if left else 100 - share
            off = abs(counted - printed)
            verdict = "holds" if off < 0.5 else "roughly" if off < 1 else "does not hold"
            rows.append(
                {
                    "claim": claim,
                    "printed": f"{printed:g} %",
                    "verdict": verdict,
                    "counted": f"{counted:.2f} % ({spinal.multiplications:,} against {fc.multiplications:,})",
                }
            )
    rows.append(
        {
            "claim": "MNIST, CNN, 6 × 8: fewer activations in the head",
            "printed": "4 %",
            "verdict": "holds",
            "counted": f"{100 * (1 - 6 * 8 / 50):.2f} % (48 hidden neurons against 50)",
        }
    )
    heads = [
        (cost, default)
        for cost in costs
        if cost.head == "spinal" and (default := find(costs, cost.script, cost.network, "fc"))
    ]
    for name, transfer in (("heads trained from scratch", False), ("heads of Table III", True)):
        if group := [pair for pair in heads if pair[0].script.startswith("tl_") == transfer]:
            fewer = sum(ours.multiplications < theirs.multiplications for ours, theirs in group)
            small = sum(abs(ours.macs / theirs.macs - 1) < 0.02 for ours, theirs in group)
            rows.append(
                {
                    "claim": f'"lower computation in most situations": {name}',
                    "printed": "most",
                    "counted": f"{fewer} of {len(group)} Spinal heads have fewer multiplications than their FC "
                    f"head; in {small} the whole network changes by less than 2 %",
                    "verdict": "holds for the heads" if 2 * fewer > len(group) else "does not hold",
                }
            )
    return rows


PARAMETERS = columns(ROW + "printed: Printed; counted: Counted; off: Off by, %")


def parameter_rows(paper: list[PaperRow], costs: list[Cost], tolerance: float = 0.005) -> list[Row]:
    """Rows whose printed number of parameters is not that of the labelled network."""
    rows = []
    for row in paper:
        printed, cost = row.metric("parameters_printed"), of_row(costs, row)
        if (
            not printed or cost is None or row.network == "densenet"
        ):  # its labels do not tell the network
            continue
        off = (
            float(printed.rstrip("kM"))
            * {"k": 1e3, "M": 1e6}.get(printed[-1], 1.0)
            / cost.parameters
            - 1
        )
        if abs(off) > tolerance:
            rows.append(
                {
                    "dataset": row.dataset + " (v2)" * ("v2" in row.table),
                    "head": head_name(row),
                    "network": NETWORKS.get(row.network, row.network),
                    "printed": printed,
                    "counted": f"{cost.parameters:,}",
                    "off": number(100 * off, 1, "+"),
                }
            )
    return rows


def plan_file(paper: list[PaperRow], costs: list[Cost]) -> str:
    """plan.csv, which tells make what to start first: networks of the tables, epochs and work of a run, longest first.

    `pflop`: 1e15 operations of the published number of epochs with the dearest head: two for each multiply-accumulate,
    training three times the forward pass.
    """
    found: dict[tuple[str, str], tuple[float, int]] = {}
    for row in paper:
        macs = [
            cost.macs for cost in costs if (cost.script, cost.network) == (row.script, row.network)
        ]
        if macs and row.epochs and row.script in IMAGES:
            (train, test), epochs = IMAGES[row.script], sum(map(int, row.epochs.split("+")))
            key = row.script, row.network
            found[key] = max(
                found.get(key, (0.0, 0)), (2e-15 * max(macs) * epochs * (3 * train + test), epochs)
            )
    longest = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
    lines = [
        f"{script},{network},{epochs},{pflop:.4g}\n"
        for (script, network), (pflop, epochs) in longest
    ]
    return "script,network,epochs,pflop\n" + "".join(lines)
