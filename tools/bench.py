"""How fast are the scripts, against the published way of training, on this machine and in this minute?

    python tools/bench.py [--data-dir data] [--device auto]

Reference: the published loop, written anew as a plain one: a DataLoader without workers, torchvision's transforms image
by image, both networks on each batch, eager fp32. Ours: what MNIST/mnist.py runs, in fp32 and in bf16; on CUDA, where a
step is a CUDA graph, also without the graph and with torch.compile instead. Each trains the FC and the Spinal network
side by side and evaluates both on the test images, as the published loop does. They take turns; the table has medians
over --repeats. Each repeat starts from fresh weights after an untimed warm-up, and accuracies are printed: a loop that
does not learn is no baseline. Then several runs of the small CNN at once: how many does this machine train best?
Writes bench/<device>.json below the folder --output, and from all files there bench.md. What ships is in results/
itself (--output results); the default, results/tables, is the user's.

Exit status: 0 done, 2 a user's mistake (such as data that are not there).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {"vgg5": 3_000, "cnn": 12_000}  # training images of a repeat on a CPU; on CUDA all 60,000
HEADS = ("fc", "spinal")


def load_script(name: str) -> ModuleType:
    """A script of this collection as a module, without running it."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


# ---- The published way -----------------------------------------------------------------------------------------------
class Images(Dataset):
    """Pictures in memory, through torchvision's transforms one at a time."""

    def __init__(self, images: Tensor, labels: Tensor, steps: list):
        self.images, self.labels, self.transform = images.cpu(), labels.cpu(), transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(transforms.functional.to_pil_image(self.images[index])), int(self.labels[index])


class Reference:
    """Both networks in the published loop: batches through a DataLoader without workers, eager fp32."""

    def __init__(self, script: ModuleType, recipe: dict, network: str, data, device: torch.device):
        to_tensor = [transforms.ToTensor(), transforms.Normalize(recipe["mean"], recipe["std"])]
        steps = [transforms.RandomPerspective(), transforms.RandomRotation(10)] if recipe["augmentation"] else []
        self.train = DataLoader(Images(*data.train, steps + to_tensor), batch_size=recipe["batch_size"], shuffle=True)
        self.test = DataLoader(Images(*data.test, to_tensor), batch_size=1_000)
        self.device, self.networks = device, [script.build_network(network, head).to(device) for head in HEADS]
        adam = recipe["optimizer"] == "Adam"
        optimizer, more = (torch.optim.Adam, {}) if adam else (torch.optim.SGD, {"momentum": recipe["momentum"]})
        self.optimizers = [optimizer(n.parameters(), lr=recipe["learning_rate"], **more) for n in self.networks]

    def warm_up(self) -> None:
        images, labels = next(iter(self.train))
        self.step(images.to(self.device), labels.to(self.device))

    def step(self, images: Tensor, labels: Tensor) -> None:
        for network, optimizer in zip(self.networks, self.optimizers):
            loss = nn.functional.nll_loss(network.train()(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def epoch(self) -> None:
        for images, labels in self.train:
            self.step(images.to(self.device), labels.to(self.device))

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        correct, count = [0, 0], 0
        for images, labels in self.test:
            images, labels = images.to(self.device), labels.to(self.device)
            count += len(labels)
            for k, network in enumerate(self.networks):
                correct[k] += (network.eval()(images).argmax(1) == labels).sum().item()
        return [100 * c / count for c in correct]

    def inputs(self) -> None:
        for images, _ in self.train:
            images.to(self.device)


# ---- Our way ---------------------------------------------------------------------------------------------------------
class Ours:
    """Both networks as the script trains them; step: "script", "plain" (no graph on CUDA) or "compile"."""

    def __init__(self, script: ModuleType, recipe: dict, network: str, data, step: str = "script"):
        self.script, self.recipe, self.data, self.step, self.passes = script, recipe, data, step, 0
        networks, device = [script.build_network(network, head) for head in HEADS], data.train[1].device
        self.trainers = [script.Trainer(network, recipe, device) for network in networks]
        if step == "compile":
            for trainer in self.trainers:
                trainer.outputs = torch.compile(trainer.outputs, mode="reduce-overhead")

    def views(self) -> tuple[Tensor, Tensor, Tensor]:
        """The augmented images, their labels, and the order of one epoch."""
        self.passes += 1
        images, labels = self.data.train
        generator = torch.Generator().manual_seed(self.passes)
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        return self.script.augment(images, self.recipe["augmentation"], generator), labels, order

    def train(self, trainer, images: Tensor, labels: Tensor, order: Tensor) -> None:
        if self.step == "script":
            trainer.epoch(images, labels, order, self.recipe["learning_rate"], quiet=True)
        else:
            trainer.network.train()
            for index in order.split(self.recipe["batch_size"]):
                trainer.step(images[index], labels[index])

    def warm_up(self) -> None:
        images, labels = self.data.train
        order = torch.arange(3 * self.recipe["batch_size"], device=labels.device)
        for trainer in self.trainers:
            self.train(trainer, images, labels, order)

    def epoch(self) -> None:
        views = self.views()
        for trainer in self.trainers:
            self.train(trainer, *views)

    def evaluate(self) -> list[float]:
        return [trainer.evaluate(*self.data.test)[1] for trainer in self.trainers]

    def inputs(self) -> None:
        (images, _, order), trainer = self.views(), self.trainers[0]
        for index in order.split(self.recipe["batch_size"]):
            images[index].float().div_(255).sub_(trainer.mean).div_(trainer.std)


# ---- Measuring -------------------------------------------------------------------------------------------------------
def timed(work: callable, device: torch.device) -> float:
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def flops_per_image(script: ModuleType, network: str) -> float:
    """Of a training step of both heads: forward pass counted by PyTorch, times three for forward and backward."""
    total = 0
    for head in HEADS:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            script.build_network(network, head).eval()(torch.zeros(1, 1, 28, 28))
        total += 3 * counter.get_total_flops()
    return total


def matrix_peak(device: torch.device, precision: str) -> float:
    """Floating point operations a second of a large matrix product, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: a @ b, device) for _ in range(6))


def sample_of(way, device: torch.device) -> dict:
    """One repeat: seconds of training, evaluation and input alone, accuracy, memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    way.warm_up()
    accuracy: list[float] = []
    sample = {"train": timed(way.epoch, device), "evaluate": timed(lambda: accuracy.extend(way.evaluate()), device)}
    sample |= {"accuracy": accuracy, "inputs": timed(way.inputs, device)}
    sample["memory"] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return sample


def measure(script: ModuleType, network: str, options: argparse.Namespace, device: torch.device) -> list[dict]:
    """One row for each way of training this network."""
    limit = options.images or (None if device.type == "cuda" else NETWORKS[network])
    arguments = ["--network", network, "--data-dir", str(options.data_dir), "--quiet"]
    settings, recipe = script.parse_arguments(arguments + ["--no-download"] * options.no_download)
    data = script.load_data(settings, recipe, device)
    images, tests = data.train[0][:limit], max(1_000, (limit or 60_000) // 6)
    data.train, data.test = (images, data.train[1][:limit]), [part[:tests] for part in data.test]
    ways = {"reference": ("fp32", lambda: Reference(script, recipe, network, data, device))}
    steps = {"": "script"} | (
        {" without graph": "plain", " with torch.compile": "compile"} if device.type == "cuda" else {}
    )
    for precision in ("fp32", "bf16"):
        for said, step in steps.items():
            ours = lambda precision=precision, step=step: Ours(
                script, recipe | {"precision": precision}, network, data, step
            )
            ways[f"ours, {precision}{said}"] = precision, ours
    samples: dict[str, list[dict]] = {name: [] for name in ways}
    for repeat in range(options.repeats):
        for name, (_, make) in ways.items():
            if repeat and "compile" in name:  # minutes of compilation for seconds of training: once
                continue
            torch.manual_seed(0)
            samples[name].append(sample_of(make(), device))
            rate, accuracy = len(images) / samples[name][-1]["train"], samples[name][-1]["accuracy"]
            said = "FC {:.1f} %, Spinal {:.1f} %".format(*accuracy)
            print(f"{network}, {name}: {rate:,.0f} images/s, test accuracy {said}", flush=True)
    rows, work = [], flops_per_image(script, network)
    whole = lambda name: statistics.median(sample["train"] + sample["evaluate"] for sample in samples[name])
    for name, (precision, _) in ways.items():
        middle = {key: statistics.median(sample[key] for sample in samples[name]) for key in ("train", "inputs")}
        accuracies = zip(*(sample["accuracy"] for sample in samples[name]))
        rows.append({
            "network": network, "way": name, "precision": precision, "threads": torch.get_num_threads(),
            "images": len(images), "tests": tests, "images_per_second": len(images) / middle["train"],
            "epoch_seconds": whole(name), "ratio": whole("reference") / whole(name),
            "input_microseconds": 1e6 * middle["inputs"] / len(images),
            "accuracy_pct": [statistics.median(values) for values in accuracies],
            "flops_per_second": work * len(images) / middle["train"], "memory_bytes": samples[name][-1]["memory"],
            "train_seconds": [sample["train"] for sample in samples[name]]})  # fmt: skip
    return rows


def processes(options: argparse.Namespace, device: torch.device) -> list[dict]:
    """Several runs of the small CNN at once: images a second of all together, from the epochs after the first."""
    rows, cuda = [], device.type == "cuda"
    limit = ["--epochs", "15"] if cuda else ["--epochs", "3", "--limit", "20000"]
    for count in options.processes or ([1, 2, 4, 8, 12] if cuda else [1, 2]):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "MNIST/mnist.py"), "--quiet", "--no-download", *limit]
            command += ["--device", str(device), "--data-dir", str(options.data_dir), "--results-dir", folder]
            quiet = {"stdout": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
            jobs = [subprocess.Popen([*command, "--seed", str(seed)], **quiet) for seed in range(count)]
            if any([job.wait() for job in jobs]):  # noqa: C419 (a list: wait for all of them)
                raise ValueError(f"one of {count} runs at once failed")
            logs = [list(map(json.loads, path.read_text().splitlines())) for path in Path(folder).rglob("*.jsonl")]
        seconds = statistics.median(line["seconds"] for log in logs for line in log if line.get("epoch", 0) > 1)
        rows.append({"processes": count, "images_per_second": count * logs[0][0]["data"]["train"] / seconds})
        print(
            f"cnn, {count} runs at once: {rows[-1]['images_per_second']:,.0f} images/s of one head in sum", flush=True
        )
    return rows


# ---- The page --------------------------------------------------------------------------------------------------------
NOTE = """Images/s: training images a second, each through both networks (FC and Spinal). Times the reference: epoch
with evaluation. Input: augmentation, batches, normalisation, without training. Share of matrix peak: counted
operations (three times the forward pass) over those of a large matrix product in the same precision. FC, Spinal: test
accuracy after those images alone, one pass; no result, but proof that each way learns."""


def table(record: dict) -> str:
    """The section of one device."""
    cuda = record["device"] == "cuda"
    head = ["Network", "Way", "Threads", "Images", "Images/s", "Times the reference", "Input, µs an image",
            "Share of matrix peak, %", "FC, %", "Spinal, %"] + ["Memory, MiB"] * cuda  # fmt: skip
    lines = [
        f"## {record['device_name']}\n",
        f"{record['date']}, torch {record['torch']}, {record['cores']} cores, load of the machine before the first "
        f"measurement {record['load']:.1f}; medians of {record['repeats']} repeats.\n",
        "| " + " | ".join(head) + " |",
        "|---|---|" + "---:|" * (len(head) - 2),
    ]
    for row in record["rows"]:
        share = 100 * row["flops_per_second"] / record["matrix_peak"][row["precision"]]
        cells = [row["network"], row["way"], row["threads"], f"{row['images']:,}", f"{row['images_per_second']:,.0f}"]
        cells += [f"{row['ratio']:.2f}", f"{row['input_microseconds']:.1f}", f"{share:.0f}"]
        cells += [f"{value:.1f}" for value in row["accuracy_pct"]]
        cells += [f"{row['memory_bytes'] / 2**20:.0f}"] if cuda else []
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines.append("")
    for row in record["processes"]:
        runs = f"{row['processes']} run{'s' if row['processes'] > 1 else ''} at once"
        lines.append(f"- cnn, {runs}: {row['images_per_second']:,.0f} images/s of one head in sum")
    return "\n".join(lines) + "\n"


def write_page(folder: Path) -> None:
    """bench.md from bench/*.json."""
    text = "\n".join(table(json.loads(path.read_text())) for path in sorted((folder / "bench").glob("*.json")))
    (folder / "bench.md").write_text(f"# Speed\n\nMade by `make bench`.\n\n{NOTE}\n\n{text}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST is, or is downloaded to")
    parser.add_argument("--no-download", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, help="training images of a repeat; default: all on CUDA, fewer on a CPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--processes", type=int, nargs="+", help="numbers of cnn runs at once; default: 1 2, on CUDA to 12"
    )
    parser.add_argument(
        "--only", choices=("networks", "processes"), help="one half of it; the other one stays as it was"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "results/tables", help="default: results/tables")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page from the files there")
    options = parser.parse_args(argv)
    if options.page_only:
        write_page(options.output)
        return 0
    if options.repeats < 1 or (options.images or 200) < 200 or min(options.processes or [1]) < 1:
        parser.error("--repeats and --processes must be 1 or more, --images 200 or more")
    script = load_script("MNIST/mnist")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    try:
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.zeros(1, device=auto if options.device == "auto" else options.device).device
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32
        else:
            torch.set_num_threads(1)  # as many runs as cores are faster than one run on all of them
        name = device_name(device)
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        slug += f"-{os.cpu_count()}-cores" if device.type == "cpu" else ""
        path = options.output / "bench" / f"{slug}.json"
        before = json.loads(path.read_text(encoding="utf-8")) if options.only and path.exists() else {}
        record = {"rows": [], "processes": []} | before | {"device": device.type, "device_name": name, "load": load}
        record |= {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
        record |= {"date": time.strftime("%Y-%m-%d", time.gmtime()), "repeats": options.repeats}
        if options.only != "processes":
            record["matrix_peak"] = {precision: matrix_peak(device, precision) for precision in ("fp32", "bf16")}
            record["rows"] = [row for network in options.networks for row in measure(script, network, options, device)]
        if options.only != "networks":
            record["processes"] = processes(options, device)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_page(options.output)
    print(f"\n{table(record)}\nWritten: {path}, {options.output / 'bench.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
