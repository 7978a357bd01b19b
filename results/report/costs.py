"""Cost: what results/costs.csv (tools/measure_costs.py) says of the paper's claims, and what all runs would take."""
from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from report.facts import NETWORKS, SCRIPT_ORDER, UserError
from report.logs import Log
from report.paper import PaperRow
from report.tables import Column, Row, number

# Assumptions of the plan, in one place: what a device makes of its peak, and what an hour costs.
DEVICES = (  # name, operations a second that training reaches (a third of dense bf16 peak), how many runs at once
    ("consumer GPU", 165e12 / 3, 1), ("data-centre GPU", 990e12 / 3, 1), ("eight data-centre GPUs", 990e12 / 3, 8))
STEP_SECONDS, STEP_IMAGES = 100e-6, 64  # however small the network, a step of so many images takes this long
TRAIN_FACTOR = 3  # forward and backward pass against the forward pass alone
IMAGES = {"mnist": (60_000, 10_000), "fashion_mnist": (60_000, 10_000), "kmnist": (60_000, 10_000), "qmnist": (60_000, 60_000),
          "emnist_digits": (240_000, 40_000), "emnist_letters": (124_800, 20_800), "emnist_balanced": (112_800, 18_800),
          "cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "tl_cifar10": (50_000, 10_000), "tl_cifar100": (50_000, 10_000),
          "tl_svhn": (73_257, 26_032), "tl_stl10": (5_000, 8_000), "tl_cinic10": (90_000, 90_000),
          "tl_oxford_flowers102": (6_552, 818), "tl_caltech101": (6_162, 820), "tl_stanford_cars": (8_144, 8_041),
          "tl_bird225": (31_316, 1_125), "tl_fruits360": (67_692, 22_688)}  # training and evaluated images an epoch, rounded


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
    microseconds: float | None
    processor: str


def read_costs(path: Path) -> list[Cost]:
    """The lines of costs.csv; none if there is no such file. Raises UserError for a damaged one."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return [Cost(r["script"], r["network"], r["head"], *(int(r[key]) if r[key] else None for key in ("layers", "width")),
                         *(int(r[key]) for key in ("parameters", "fc_multiplications", "macs")),
                         float(r["microseconds"]) if r["microseconds"] else None, r["processor"]) for r in csv.DictReader(stream)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error!r}; make it again with tools/measure_costs.py") from None


def place(script: str) -> tuple:
    return (script.startswith("tl_"), SCRIPT_ORDER.index(script) if script in SCRIPT_ORDER else len(SCRIPT_ORDER), script)


def default_of(cost: Cost, costs: Iterable[Cost]) -> Cost | None:
    """The FC head of the same network."""
    return next((other for other in costs if other.head == "fc" and (other.script, other.network) == (cost.script, cost.network)),
                None)


NETWORK_COST_COLUMNS = [
    Column("script", "Script"), Column("network", "Network"), Column("head", "Spinal head"),
    Column("fc", "FC", "Head, multiplications"), Column("spinal", "Spinal", "Head, multiplications"),
    Column("ratio", "Spinal / FC", "Head, multiplications"), Column("macs", "FC, millions", "All multiply-accumulates"),
    Column("change", "Spinal, change in %", "All multiply-accumulates"), Column("parameters", "change in %", "Parameters"),
    Column("fc_time", "FC, µs", "Inference an image"), Column("spinal_time", "Spinal, µs", "Inference an image")]


def network_cost_rows(costs: list[Cost]) -> list[Row]:
    """Each Spinal head beside the FC head of its network; networks that cost the same in several scripts stand once."""
    rows: dict[tuple, Row] = {}
    for cost in sorted(costs, key=lambda item: (*place(item.script), item.network, item.layers or 0, item.width or 0)):
        default = default_of(cost, costs)
        if cost.head == "fc" or default is None:
            continue
        key = cost.network, cost.layers, cost.width, cost.multiplications, cost.macs, default.macs
        ratio = cost.multiplications / default.multiplications
        row = rows.setdefault(key, {
            "script": "", "network": NETWORKS.get(cost.network, cost.network), "head": f"{cost.layers} × {cost.width}",
            "fc": f"{default.multiplications:,}", "spinal": f"{cost.multiplications:,}",
            "ratio": number(ratio, 0 if ratio > 10 else 2), "macs": number(default.macs / 1e6, 2 if default.macs < 1e7 else 0),
            "change": number(100 * (cost.macs / default.macs - 1), 2, "+"),
            "parameters": number(100 * (cost.parameters / default.parameters - 1), 1, "+"),
            "fc_time": number(default.microseconds, 1 if default.microseconds and default.microseconds < 100 else 0),
            "spinal_time": number(cost.microseconds, 1 if cost.microseconds and cost.microseconds < 100 else 0)})
        row["script"] += f"{', ' * bool(row['script'])}{cost.script}"
    return list(rows.values())


CLAIM_COLUMNS = [Column("claim", "The paper's claim"), Column("printed", "Printed"), Column("counted", "Counted"),
                 Column("verdict", "Verdict")]


def find(costs: list[Cost], script: str, network: str, head: str, layers: int | None = None, width: int | None = None) -> Cost | None:
    return next((cost for cost in costs if (cost.script, cost.network, cost.head) == (script, network, head)
                 and (layers, width) in ((None, None), (cost.layers, cost.width))), None)


def claim_rows(costs: list[Cost]) -> list[Row]:
    """Every claim on cost that the paper prints, recounted from costs.csv."""
    rows: list[Row] = []

    def add(claim: str, printed: float, script: str, network: str, layers: int, width: int, left: bool = False) -> None:
        spinal, fc = find(costs, script, network, "spinal", layers, width), find(costs, script, network, "fc")
        if spinal is None or fc is None:
            return
        share = 100 * spinal.multiplications / fc.multiplications
        counted = share if left else 100 - share
        rows.append({"claim": claim, "printed": f"{printed:g} %", "verdict": "holds" if abs(counted - printed) < 0.5 else "roughly" if abs(counted - printed) < 1 else
                     "does not hold",
                     "counted": f"{counted:.2f} % ({spinal.multiplications:,} against {fc.multiplications:,})"})

    add("regression: fewer multiplications", 35.5, "synthetic_regression", "mlp", 6, 50)
    add("MNIST, CNN, 6 × 8: over 48.5 % fewer multiplications in the head", 48.5, "mnist", "cnn", 6, 8)
    rows.append({"claim": "MNIST, CNN, 6 × 8: fewer activations in the head", "printed": "4 %", "verdict": "holds",
                 "counted": f"{100 * (1 - 6 * 8 / 50):.2f} % (48 hidden neurons against 50)"})
    add("CIFAR-100, VGG-19: multiplications of the head left", 7, "cifar100", "vgg19", 4, 512, left=True)
    add("the same with CIFAR-10's ten classes", 7, "cifar10", "vgg19", 4, 512, left=True)
    add("v2, DenseNet 8 × 16: fewer (our guess of the network)", 87, "cifar10", "densenet", 8, 16)
    add("v2, DenseNet 8 × 64: fewer (our guess of the network)", 44.1, "cifar10", "densenet", 8, 64)
    fc, spinal = 400 * 120 + 120 * 84 + 84 * 10, 200 * 20 + 5 * 220 * 20 + 120 * 10  # sizes of v2's table
    rows.append({"claim": "v2, CIFAR-10, CNN of PyTorch's tutorial, 6 × 20: fewer", "printed": "4.8 %", "verdict": "does not hold",
                 "counted": f"{100 - 100 * spinal / fc:.2f} % ({spinal:,} against {fc:,}, from the printed sizes)"})
    heads = [(cost, default) for cost in costs if cost.head == "spinal" and (default := default_of(cost, costs))]
    scratch = [(a, b) for a, b in heads if not a.script.startswith("tl_")]
    for name, group in (("heads trained from scratch", scratch), ("heads of Table III", [pair for pair in heads if pair not in scratch])):
        if group:
            fewer = sum(ours.multiplications < theirs.multiplications for ours, theirs in group)
            small = sum(abs(ours.macs / theirs.macs - 1) < 0.02 for ours, theirs in group)
            rows.append({"claim": f"\"lower computation in most situations\": {name}", "printed": "most",
                         "counted": f"{fewer} of {len(group)} Spinal heads have fewer multiplications than their FC head; in {small} "
                                    "the whole network changes by less than 2 %",
                         "verdict": "holds for the heads" if 2 * fewer > len(group) else "does not hold"})
    return rows


PARAMETER_COLUMNS = [Column("dataset", "Data set"), Column("network", "Network"), Column("head", "Head"),
                     Column("printed", "Printed"), Column("counted", "Counted"), Column("off", "Off by, %")]


def parse_count(text: str) -> float:
    """`21.84k`, `3.646M`."""
    return float(text.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(text[-1:], 1.0)


def parameter_rows(paper: list[PaperRow], costs: list[Cost], tolerance: float = 0.005) -> list[Row]:
    """Rows whose printed number of parameters is not that of the labelled network."""
    rows = []
    for row in paper:
        printed = row.metric("parameters_printed")
        sizes = (row.layers, row.width) if row.head == "spinal" else (None, None)
        cost = find(costs, row.script, row.network, row.head, *sizes)
        if not printed or cost is None or row.table == "II (v2 only)" and row.network == "densenet":
            continue
        off = parse_count(printed) / cost.parameters - 1
        if abs(off) > tolerance:
            head = "FC" if row.head == "fc" else f"Spinal {row.layers} × {row.width}"
            rows.append({"dataset": row.dataset + (" (v2)" if "v2" in row.table else ""), "head": head, "printed": printed,
                         "network": NETWORKS.get(row.network, row.network), "counted": f"{cost.parameters:,}",
                         "off": number(100 * off, 1, "+")})
    return rows


PLAN_COLUMNS = [Column("part", "Part of the tables"), Column("rows", "Rows × protocols × runs"), Column("work", "Work, PFLOP"),
                Column("cpu", "This CPU core, days"), *(Column(name, f"{name}, hours") for name, _, _ in DEVICES)]


def plan_rows(paper: list[PaperRow], costs: list[Cost], logs: list[Log], runs: int = 10) -> list[Row]:
    """What ten runs of every row under both protocols take: counted work, and seconds a MAC as our CPU logs measured them."""
    parts: dict[str, list[tuple[float, float | None, float]]] = defaultdict(list)
    speeds = measured_speeds(costs, logs)
    for row in dict.fromkeys(paper):
        sizes = (row.layers, row.width) if row.head == "spinal" else (None, None)
        cost = find(costs, row.script, row.network, row.head, *sizes)
        if cost is None or row.script not in IMAGES or not row.epochs:
            continue
        train, test = IMAGES[row.script]
        epochs = sum(int(part) for part in row.epochs.split("+"))
        macs = cost.macs * epochs * (TRAIN_FACTOR * train + test)
        part = "Table III" if row.table == "III" else f"Table II, {'CIFAR' if 'cifar' in row.script else 'MNIST and EMNIST'}, " \
            f"{'small CNN' if (row.network, 'cifar' in row.script) == ('cnn', False) else 'larger networks'}"
        speed = speeds.get((row.network, "small" if "cifar" not in row.script and row.table != "III" else row.script))
        parts[part].append((2 * macs, macs * speed if speed else None, STEP_SECONDS * epochs * train / STEP_IMAGES))
    rows = []
    for part, work in parts.items():
        times, flops = 2 * runs, sum(flop for flop, _, _ in work)
        seconds = [second for _, second, _ in work]
        row = {"part": part, "rows": f"{len(work)} × 2 × {runs}", "work": number(times * flops / 1e15, 0 if times * flops > 1e16 else 1),
               "cpu": number(times * sum(seconds) / 86_400, 1) if None not in seconds else ""}
        for name, rate, devices in DEVICES:
            hours = times * sum(max(flop / rate, floor) for flop, _, floor in work) / devices / 3600
            row[name] = number(hours, 1 if hours > 0.1 else 2)
        rows.append(row)
    return rows


def plan_file(paper: list[PaperRow], costs: list[Cost]) -> str:
    """plan.csv, which tells make what to start first: each network of the tables, epochs and work of a run, longest first.

    `pflop`: 1e15 operations of the published number of epochs, two for each multiply-accumulate, with the dearest head.
    """
    work: dict[tuple[str, str], tuple[float, int]] = {}
    for row in paper:
        found = [cost.macs for cost in costs if (cost.script, cost.network) == (row.script, row.network)]
        if found and row.epochs and row.script in IMAGES:
            train, test = IMAGES[row.script]
            epochs = sum(int(part) for part in row.epochs.split("+"))
            key = row.script, row.network
            work[key] = max(work.get(key, (0.0, 0)), (2e-15 * max(found) * epochs * (TRAIN_FACTOR * train + test), epochs))
    longest = sorted(work.items(), key=lambda item: (-item[1][0], item[0]))
    lines = [f"{script},{network},{epochs},{pflop:.4g}\n" for (script, network), (pflop, epochs) in longest]
    return "script,network,epochs,pflop\n" + "".join(lines)


def measured_speeds(costs: list[Cost], logs: list[Log]) -> dict[tuple[str, str], float]:
    """(network, kind of image): seconds a MAC of training and evaluation on the CPU core of the logs, median over runs."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for log in logs:
        settings = log.settings
        sizes = (settings["layers"], settings["width"]) if settings["head"] == "spinal" else (None, None)
        cost = find(costs, log.script, settings["network"], settings["head"], *sizes)
        if cost is None or log.regression or log.start["provenance"]["device"] != "cpu" or not log.end["epochs"]:
            continue
        macs = cost.macs * log.end["epochs"] * (TRAIN_FACTOR * log.data["train"] + (log.data["heldout"] or log.data["test"]))
        kind = log.script if "cifar" in log.script or log.script.startswith("tl_") else "small"
        found[settings["network"], kind].append(log.end["seconds"] / macs)
    return {key: sorted(values)[len(values) // 2] for key, values in found.items() if math.isfinite(sum(values))}
