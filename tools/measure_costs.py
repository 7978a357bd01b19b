"""What each network of the paper's tables costs for one image, and what a constant scores in Table I.

    python tools/measure_costs.py [--folder results]

Builds every row of results/paper.csv, and the widths of the released scripts where these differ from the labels, with
the scripts' own build_network (published protocol). Counts parameters, multiplications of linear layers and all
multiply-accumulates of a forward pass (PyTorch's flop counter, halved) into costs.csv. No times: between equal
networks they differed by 30 %. The networks of Table III are counted with PyTorch's fake tensors, which compute shapes
only; their multiplications are those of `corrected`, where VGG's new head is in its place (transfer Q1: a head that is
never called), their parameters those of `published`, as the paper prints them.

Writes regression_constants.csv, too: for each function and seed of Table I the mean squared error, x 1e-3, of the best
constant on the 10,000 fresh samples that Regression/synthetic_regression.py draws for that seed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from report.paper import read_paper  # noqa: E402

COLUMNS = ("script", "network", "head", "layers", "width", "input", "parameters", "fc_multiplications", "macs")
RELEASED = (  # widths of the released scripts that no label of the paper has
    ("cifar10", "resnet18", 4, 256), ("cifar10", "vgg11", 4, 512), ("cifar10", "vgg13", 4, 512),
    ("cifar100", "resnet18", 4, 512), ("cifar100", "resnet34", 4, 512), ("cifar100", "vgg11", 4, 512),
    ("cifar100", "vgg13", 4, 512))
SIDES = {"tl_cifar10": 256, "tl_cifar100": 256, "tl_svhn": 256, "tl_stl10": 256, "tl_caltech101": 224,
         "tl_bird225": 224, "tl_stanford_cars": 448, "tl_cinic10": 448, "tl_oxford_flowers102": 448,
         "tl_fruits360": 128}
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda x: x.sum(1), "sinsum": lambda x: x.sum(1).sin(), "product": lambda x: x.prod(1),
    "sinproduct": lambda x: x.prod(1).sin()}
FRESH, SEEDS = 10_000, 10


def load_script(name: str) -> ModuleType:
    """The script of a row as a module."""
    path = next(iter(sorted(ROOT.glob(f"*/{name}.py"))))
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


def count(network: nn.Module, sample: torch.Tensor) -> tuple[int, int]:
    """(multiplications of linear layers, all multiply-accumulates) of a forward pass of this one sample."""
    linear = []
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda layer, *_: linear.append(layer.in_features * layer.out_features))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(sample)
    return sum(linear), counter.get_total_flops() // 2


def cost(module: ModuleType, script: str, network: str, head: str, layers: int | None, width: int | None) -> list:
    """One line of costs.csv."""
    transfer, shape = script.startswith("tl_"), input_shape(script)
    sizes = {"layers": layers, "width": width} if head == "spinal" else {}
    options = {"pretrained": False} if transfer else {}
    with FakeTensorMode() if transfer else contextlib.nullcontext():
        published = module.build_network(network, head, **sizes, **options).eval()
        counted = published
        if transfer:
            counted = module.build_network(network, head, protocol="corrected", **sizes, **options).eval()
        counts = count(counted, torch.zeros(1, *shape))
    parameters = sum(parameter.numel() for parameter in published.parameters())
    return [script, network, head, layers or "", width or "", "x".join(map(str, shape)), parameters, *counts]


def cost_lines() -> list[list]:
    """All lines of costs.csv: the rows of the paper in its order, each followed by the released width."""
    wanted = []
    for row in read_paper(ROOT / "results/paper.csv"):
        sizes = (row.layers, row.width) if row.head == "spinal" else (None, None)
        wanted.append((row.script, row.network, row.head, *sizes))
        if row.head == "spinal":
            wanted += [(script, network, "spinal", layers, width) for script, network, layers, width in RELEASED
                       if (script, network) == (row.script, row.network)]
    modules = {script: load_script(script) for script in dict.fromkeys(row[0] for row in wanted)}
    return [cost(modules[row[0]], *row) for row in dict.fromkeys(wanted)]


def constant_lines() -> list[list]:
    """All lines of regression_constants.csv: the variance of each function on the fresh samples of each seed."""
    lines = []
    for function, formula in FUNCTIONS.items():
        for seed in range(SEEDS):
            digest = hashlib.blake2b(repr((seed, "fresh")).encode(), digest_size=8).digest()  # seed_of of the script
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            inputs = torch.stack([torch.randn(FRESH, generator=generator) for _ in range(8)], 1)
            lines.append([function, seed, f"{1000 * float(formula(inputs).double().var(correction=0)):.6g}"])
    return lines


def write(path: Path, columns: tuple[str, ...], lines: list[list]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(lines)
    print(f"{len(lines)} lines: {path}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "results", help="default: results of the collection")
    folder = parser.parse_args(argv).folder
    write(folder / "costs.csv", COLUMNS, cost_lines())
    write(folder / "regression_constants.csv", ("function", "seed", "mse_x1e-3"), constant_lines())
    return 0


if __name__ == "__main__":
    sys.exit(main())
