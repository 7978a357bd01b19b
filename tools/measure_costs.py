"""What each network of the tables costs: counted, not timed.

    python tools/measure_costs.py [--folder results]

Writes three files. costs.csv: for every row of results/paper.csv, and for the widths of the
released scripts where these differ from the labels, parameters, multiplications of linear layers
and all multiply-accumulates of a forward pass of one image (PyTorch's flop counter, halved), with
the scripts' own build_network (published protocol). No times: between equal networks they differed
by 30 %. The networks of Table III are counted with PyTorch's fake tensors, which compute shapes
only; their multiplications are those of `corrected`, where VGG's new head is in its place (the
published one is never called), their parameters those of `published`, as the paper prints them.

plan.csv: epochs and work of a whole run of each network that make knows, longest first, with the
dearest head. `pflop` is in 1e15 operations: two for each multiply-accumulate, training three times
the forward pass. make starts runs in this order, `make plan` and `make status` estimate times.

regression_constants.csv: for each function and seed of Table I the mean squared error, x 1e-3, of
the best constant on the 10,000 fresh samples that Regression/synthetic_regression.py draws.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from report.paper import read_paper  # noqa: E402

COUNTS = ("parameters", "fc_multiplications", "macs")
COLUMNS = ("script", "network", "head", "layers", "width", "input", *COUNTS)
RELEASED = [  # widths of the released scripts that no label of the paper has
    ("cifar10", "resnet18", 4, 256),
    ("cifar10", "vgg11", 4, 512),
    ("cifar10", "vgg13", 4, 512),
    ("cifar100", "resnet18", 4, 512),
    ("cifar100", "resnet34", 4, 512),
    ("cifar100", "vgg11", 4, 512),
    ("cifar100", "vgg13", 4, 512),
]
OTHERS = [  # in no table of the paper: script, network, layers, width, epochs
    ("arch2_mnist", "arch2", 26, 30, 200),
    ("arch2_fashion_mnist", "arch2", 26, 300, 200),
    ("arch2_kmnist", "arch2", 26, 50, 200),
    ("arch2_qmnist", "arch2", 26, 50, 200),
    ("arch2_emnist_digits", "arch2", 26, 50, 200),
    ("cifar10", "cnn", 4, 128, 160),
    ("cifar100", "cnn", 4, 256, 160),
    ("tl_mnist", "vgg19_bn", 4, 1024, 20),
    ("tl_fashion_mnist", "wide_resnet101_2", 4, 1024, 10),
    ("tl_hymenoptera", "resnet18", 6, 5, 25),
    ("tl_monkey10", "alexnet", 4, 20, 20),
    ("tl_monkey10", "wide_resnet101_2", 4, 20, 20),
    ("tl_intel_image", "wide_resnet101_2", 4, 20, 20),
]
SIDES = {  # of the images of the transfer scripts, in pixels
    "tl_cifar10": 256,
    "tl_cifar100": 256,
    "tl_svhn": 256,
    "tl_stl10": 256,
    "tl_caltech101": 224,
    "tl_bird225": 224,
    "tl_stanford_cars": 448,
    "tl_cinic10": 448,
    "tl_oxford_flowers102": 448,
    "tl_fruits360": 128,
    "tl_mnist": 112,
    "tl_fashion_mnist": 112,
    "tl_hymenoptera": 224,
    "tl_monkey10": 300,
    "tl_intel_image": 224,
}
IMAGES = {  # trained and evaluated ones in an epoch, of a data set or of one of its scripts
    "synthetic_regression": (1_000, 11_000),
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "kmnist": (60_000, 10_000),
    "qmnist": (60_000, 60_000),
    "emnist_digits": (240_000, 40_000),
    "emnist_letters": (124_800, 20_800),
    "emnist_balanced": (112_800, 18_800),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "svhn": (73_257, 26_032),
    "stl10": (5_000, 8_000),
    "cinic10": (90_000, 90_000),
    "oxford_flowers102": (6_552, 818),
    "caltech101": (6_162, 820),
    "stanford_cars": (8_144, 8_041),
    "bird225": (31_316, 1_125),
    "fruits360": (67_692, 22_688),
    "hymenoptera": (244, 153),
    "monkey10": (1_098, 272),
    "intel_image": (14_034, 3_000),
}
FUNCTIONS = ("sum", "sinsum", "product", "sinproduct")
FRESH, SEEDS = 10_000, 10


def load_script(name: str) -> ModuleType:
    """The script of a row as a module."""
    path = next(iter(sorted(ROOT.glob(f"[A-Z]*/{name}.py"))))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def input_shape(script: str) -> tuple[int, ...]:
    """Shape of one input of a script, without the batch."""
    if script == "synthetic_regression":
        return (8,)
    side = SIDES.get(script, 32 if script.startswith("cifar") else 28)
    return (1 if side == 28 else 3, side, side)


def count(network: nn.Module, sample: Tensor) -> tuple[int, int]:
    """(multiplications of linear layers, all multiply-accumulates) of a pass of this one sample."""
    linear = []

    def note(layer: nn.Linear, *_) -> None:
        linear.append(layer.in_features * layer.out_features)

    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(note)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(sample)
    return sum(linear), counter.get_total_flops() // 2


def cost(
    module: ModuleType,
    script: str,
    network: str,
    head: str,
    layers: int | None,
    width: int | None,
) -> list:
    """One line of costs.csv."""
    transfer, shape = script.startswith("tl_"), input_shape(script)
    sizes = {"layers": layers, "width": width} if head == "spinal" else {}
    options = {"pretrained": False} if transfer else {}
    with FakeTensorMode() if transfer else contextlib.nullcontext():
        published = module.build_network(network, head, **sizes, **options).eval()
        counted = published
        if transfer:
            options["protocol"] = "corrected"
            counted = module.build_network(network, head, **sizes, **options).eval()
        counts = count(counted, torch.zeros(1, *shape))
    parameters = sum(parameter.numel() for parameter in published.parameters())
    shape = "x".join(map(str, shape))
    return [script, network, head, layers or "", width or "", shape, parameters, *counts]


def rows_of_paper() -> list[tuple]:
    """(script, network, head, layers, width) in the paper's order, each with its released width."""
    wanted = []
    for row in read_paper(ROOT / "results/paper.csv"):
        if row.head == "fc":
            wanted.append((row.script, row.network, "fc", None, None))
            continue
        wanted.append((row.script, row.network, row.head, row.layers, row.width))
        for script, network, layers, width in RELEASED:
            if (script, network) == (row.script, row.network):
                wanted.append((script, network, "spinal", layers, width))
    return list(dict.fromkeys(wanted))


def lines_of(rows: list[tuple]) -> list[list]:
    """A line of costs.csv for each."""
    modules = {script: load_script(script) for script in dict.fromkeys(row[0] for row in rows)}
    return [cost(modules[row[0]], *row) for row in rows]


def plan_lines(costs: list[list]) -> list[list]:
    """All lines of plan.csv, from lines like those of costs.csv."""
    epochs = {(script, network): number for script, network, _, _, number in OTHERS}
    for row in read_paper(ROOT / "results/paper.csv"):
        if row.epochs:
            stages = [int(number) for number in row.epochs.split("+")]
            key = row.script, row.network
            epochs[key] = max(epochs.get(key, 0), sum(stages))
    work = {}
    for script, network, *_, macs in costs:
        key = script, network
        data_set = script.removeprefix("tl_").removeprefix("arch2_")
        train, test = IMAGES[data_set]
        pflop = 2e-15 * macs * epochs[key] * (3 * train + test)
        work[key] = max(pflop, work.get(key, 0.0))
    longest = sorted(work, key=lambda key: (-work[key], key))
    return [[*key, epochs[key], f"{work[key]:.4g}"] for key in longest]


def clean(function: str, inputs: Tensor) -> Tensor:
    """The function of Table I without noise: (N, 8) -> (N,)"""
    value = inputs.prod(1) if function.endswith("product") else inputs.sum(1)
    return value.sin() if function.startswith("sin") else value


def constant_lines() -> list[list]:
    """All lines of regression_constants.csv: variances of the functions on fresh samples."""
    lines = []
    for function in FUNCTIONS:
        for seed in range(SEEDS):
            # The seed of the fresh samples, as the script's seed_of makes it.
            digest = hashlib.blake2b(repr((seed, "fresh")).encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            columns = [torch.randn(FRESH, generator=generator) for _ in range(8)]
            values = clean(function, torch.stack(columns, 1)).double()
            lines.append([function, seed, f"{1000 * float(values.var(correction=0)):.6g}"])
    return lines


def write(path: Path, columns: tuple[str, ...], lines: list[list]) -> None:
    """Writes a CSV file, and says so."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(lines)
    print(f"{len(lines)} lines: {path}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--folder", type=Path, default=ROOT / "results", help="default: results")
    folder = parser.parse_args(argv).folder
    costs = lines_of(rows_of_paper())
    write(folder / "costs.csv", COLUMNS, costs)
    others = []
    for script, network, layers, width, _ in OTHERS:
        others.append((script, network, "spinal", layers, width))
    plan = plan_lines(costs + lines_of(others))
    write(folder / "plan.csv", ("script", "network", "epochs", "pflop"), plan)
    constants = folder / "regression_constants.csv"
    write(constants, ("function", "seed", "mse_x1e-3"), constant_lines())
    return 0


if __name__ == "__main__":
    sys.exit(main())
