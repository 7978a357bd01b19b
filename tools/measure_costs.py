"""What each network of the paper's tables costs for one image: python tools/measure_costs.py [--no-times]

Builds every row of results/paper.csv that has a script (published protocol), counts parameters, multiplications of linear
layers and all multiply-accumulates of a forward pass (PyTorch's flop counter, halved), and measures the time of a forward pass
on this machine: fp32, one thread, batches of 100, median of several, in microseconds an image. Writes results/costs.csv, from
which the report takes its cost columns. Counts are exact; times are this machine's. The networks of Table III are counted on
PyTorch's `meta` device, which computes shapes only, and are not timed; their multiplications are those of `corrected`, where
VGG's new head is in its place (transfer Q1), their parameters those of `published`, as the paper prints them.
"""
from __future__ import annotations

import argparse
import csv
import importlib.util
import platform
import sys
import time
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "results"))
from report.paper import read_paper  # noqa: E402

COLUMNS = ("script", "network", "head", "layers", "width", "input", "parameters", "fc_multiplications", "macs", "microseconds",
           "processor", "torch")
BATCH, REPEATS = 100, 7


def load_script(name: str) -> ModuleType | None:
    """The script of a row as a module; None if this collection has none."""
    path = next(iter(sorted(ROOT.glob(f"*/{name}.py"))), None)
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def input_shape(name: str, module: ModuleType) -> tuple[int, ...]:
    """Shape of one input of a script, without the batch."""
    if name.startswith("tl_"):
        size = module.IMAGE_SIZE
        return (3, *(size if isinstance(size, tuple) else (size, size)))
    return {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "synthetic_regression": (8,)}.get(name, (1, 28, 28))


def build(script: str, network: str, head: str, layers: int | None, width: int | None, module: ModuleType,
          protocol: str = "published") -> nn.Module:
    """The network in evaluation mode; Table III without weights, on the device `meta`."""
    sizes = {} if head == "fc" else {"layers": layers, "width": width}
    if not script.startswith("tl_"):
        return module.build_network(network, head, protocol=protocol, **sizes).eval()
    with torch.device("meta"):
        return module.build_network(network, head, protocol=protocol, pretrained=False, **sizes).eval()


def count(network: nn.Module, sample: torch.Tensor) -> tuple[int, int]:
    """(multiplications of linear layers, all multiply-accumulates) of a forward pass of this one sample."""
    linear = []
    hooks = [module.register_forward_hook(lambda m, _, __: linear.append(m.in_features * m.out_features))
             for module in network.modules() if isinstance(module, nn.Linear)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(sample)
    for hook in hooks:
        hook.remove()
    return sum(linear), counter.get_total_flops() // 2


@torch.no_grad()
def microseconds(network: nn.Module, shape: tuple[int, ...]) -> float:
    """Shortest time of a forward pass for one image, in a batch: what other work on the machine can only lengthen."""
    images, times = torch.randn(BATCH, *shape), []
    network(images)
    for _ in range(REPEATS):
        began = time.perf_counter()
        network(images)
        times.append(1e6 * (time.perf_counter() - began) / BATCH)
    return min(times)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "results/costs.csv")
    parser.add_argument("--no-times", action="store_true", help="count only")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows, modules = [], {}
    for row in read_paper(ROOT / "results/paper.csv"):
        module = modules.setdefault(row.script, load_script(row.script))
        if module is None or row.network not in getattr(module, "RECIPES", {row.network}):
            continue
        rows.append((row.script, row.network, row.head, row.layers if row.head == "spinal" else None,
                     row.width if row.head == "spinal" else None))
        if row.head == "spinal" and hasattr(module, "RECIPES"):  # released scripts differ from some labels in width
            rows.append((row.script, row.network, "spinal", *module.RECIPES[row.network].spinal[:2]))
    records = []
    for script, network_name, head, layers, width in dict.fromkeys(rows):
        network = build(script, network_name, head, layers, width, modules[script])
        shape, meta = input_shape(script, modules[script]), script.startswith("tl_")
        counted = build(script, network_name, head, layers, width, modules[script], "corrected") if meta else network
        linear, macs = count(counted, torch.zeros(1, *shape, device="meta" if meta else "cpu"))
        timed = not (options.no_times or meta)
        records.append((script, network_name, head, layers or "", width or "", "x".join(map(str, shape)),
                        sum(p.numel() for p in network.parameters()), linear, macs,
                        f"{microseconds(network, shape):.3g}" if timed else "", processor() if timed else "", torch.__version__))
        print(*records[-1], flush=True)
    with options.output.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
