"""How fast are the scripts, against the published way of training, on this machine and in this minute?

    python tools/bench.py [--data-dir data] [--device auto]

Reference: the published loop, written anew as a plain one: a DataLoader without workers, torchvision's transforms image by
image, both networks on each batch, eager fp32. Ours: what MNIST/mnist.py runs, in fp32 and in bf16 (on CUDA with and without
its graph). Both train the FC and the Spinal network side by side and evaluate both on the test images, as the published loop
does. They take turns; the table has medians over --repeats. Each repeat starts from fresh weights after an untimed warm-up,
and accuracies are printed: a loop that does not learn is no baseline. Writes results/bench/<device>.json, and from all files
there results/bench.md and the part of README.md between its `made by make bench` marks.

Exit status: 0 done, 2 a user's mistake (such as data that are not there).
"""
from __future__ import annotations

import argparse
import contextlib
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
BEGIN, END = "<!-- begin: made by make bench -->", "<!-- end: made by make bench -->"


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


# ---- The published way --------------------------------------------------------------------------------------------------
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

    def __init__(self, script: ModuleType, network: str, data, device: torch.device):
        recipe = script.RECIPES[network]
        to_tensor = [transforms.ToTensor(), transforms.Normalize((recipe.norm[0],), (recipe.norm[1],))]
        augmentation = [transforms.RandomPerspective(), transforms.RandomRotation(10)] if recipe.augment else []
        train = Images(data.train.images, data.train.labels, augmentation + to_tensor)
        self.train = DataLoader(train, batch_size=recipe.batch_size, shuffle=True)
        self.test = DataLoader(Images(data.test.images, data.test.labels, to_tensor), batch_size=1_000)
        self.device, self.networks = device, [script.build_network(network, head).to(device) for head in ("fc", "spinal")]
        self.optimizers = [torch.optim.Adam(n.parameters(), lr=recipe.learning_rate) if recipe.optimizer == "Adam" else
                           torch.optim.SGD(n.parameters(), lr=recipe.learning_rate, momentum=0.5) for n in self.networks]

    def warm_up(self) -> None:
        for images, labels in self.train:
            self.step(images.to(self.device), labels.to(self.device))
            break

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
        for images, labels in self.train:
            images.to(self.device)


# ---- Our way ------------------------------------------------------------------------------------------------------------
class Ours:
    """Both networks as the script trains them."""

    def __init__(self, script: ModuleType, network: str, data, device: torch.device, precision: str, graph: bool):
        self.script, self.data, self.precision, self.recipe = script, data, precision, script.RECIPES[network]
        self.networks, self.trainers, self.passes = [], [], 0
        team = script.Team(argparse.Namespace(device=str(device)))
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if precision == "bf16" else "highest")
            torch.backends.cudnn.allow_tf32 = precision == "bf16"
        for head in ("fc", "spinal"):
            network_ = script.build_network(network, head).to(device, memory_format=torch.channels_last)
            optimizer = script.build_optimizer(network_, self.recipe, self.recipe.learning_rate)
            self.networks.append(network_)
            self.trainers.append(script.Trainer(network_, optimizer, data, precision, team))
            self.trainers[-1].wants_graph = graph

    def views(self) -> tuple:
        """The augmented images and the order of one epoch."""
        self.passes += 1
        generator = torch.Generator().manual_seed(self.passes)
        order = torch.randperm(len(self.data.train.labels), generator=generator).to(self.data.train.labels.device)
        views = self.script.augment(self.data.train.images, self.recipe.augment, generator)
        return self.script.Split(views, self.data.train.labels), order

    def warm_up(self) -> None:
        torch.manual_seed(0)
        for trainer in self.trainers:
            trainer.epoch(self.data.train, torch.arange(self.recipe.batch_size, device=self.data.shift.device),
                          self.recipe.batch_size, lambda: None)

    def epoch(self) -> None:
        split, order = self.views()
        for trainer in self.trainers:
            torch.manual_seed(self.passes)
            trainer.epoch(split, order, self.recipe.batch_size, lambda: None)

    def evaluate(self) -> list[float]:
        return [self.script.evaluate(network, self.data.test, self.data, self.precision)[1] for network in self.networks]

    def inputs(self) -> None:
        split, order = self.views()
        for index in order.split(self.recipe.batch_size):
            self.script.normalise(split.images[index], self.data)


# ---- Measuring ----------------------------------------------------------------------------------------------------------
def timed(work: callable, device: torch.device) -> float:
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def flops_per_image(script: ModuleType, network: str) -> float:
    """Of a training step of both heads: forward pass counted by PyTorch, times three for forward and backward."""
    total = 0
    for head in ("fc", "spinal"):
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


def measure(script: ModuleType, network: str, options: argparse.Namespace, device: torch.device) -> list[dict]:
    """One row for each way of training this network."""
    images = options.images or (60_000 if device.type == "cuda" else NETWORKS[network])
    arguments = ["--network", network, "--data-dir", str(options.data_dir), "--quiet"] + ["--no-download"] * options.no_download
    settings = script.parse_arguments(arguments)
    data = script.load_data(settings, device)
    data.train = script.Split(data.train.images[:images], data.train.labels[:images])
    tests = max(1_000, images // 6)
    data.test = script.Split(data.test.images[:tests], data.test.labels[:tests])
    images = len(data.train.labels)
    all_threads = torch.get_num_threads()
    few = 1 if script.RECIPES[network].one_thread and device.type == "cpu" else all_threads
    ways = {"reference": (all_threads, "fp32", False, lambda: Reference(script, network, data, device))}
    for precision in ("fp32", "bf16"):
        for graph in (False, True) if device.type == "cuda" else (False,):
            name = f"ours, {precision}" + (", graph" if graph else ", eager" if device.type == "cuda" else "")
            ways[name] = (few, precision, graph, lambda p=precision, g=graph: Ours(script, network, data, device, p, g))
    samples = {name: [] for name in ways}
    for repeat in range(options.repeats):
        for name, (threads, _, _, make) in ways.items():
            torch.set_num_threads(threads)
            torch.manual_seed(repeat)
            way = make()
            way.warm_up()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            sample = {"train": timed(way.epoch, device), "inputs": timed(way.inputs, device)}
            sample["evaluate"] = timed(lambda: sample.update(accuracy=way.evaluate()), device)
            sample["memory"] = script.peak_memory(device) if device.type == "cuda" else None
            samples[name].append(sample)
            print(f"{network}  {name:20s} repeat {repeat + 1} of {options.repeats}: {images / sample['train']:,.0f} images/s, "
                  f"inputs {1e6 * sample['inputs'] / images:.1f} us an image, test accuracy FC {sample['accuracy'][0]:.1f} %, "
                  f"Spinal {sample['accuracy'][1]:.1f} %", flush=True)
    torch.set_num_threads(all_threads)
    rows, work = [], flops_per_image(script, network)
    for name, (threads, precision, _, _) in ways.items():
        middle = {key: statistics.median(sample[key] for sample in samples[name]) for key in ("train", "inputs", "evaluate")}
        pair = [statistics.median(r["train"] + r["evaluate"] for r in samples["reference"]), middle["train"] + middle["evaluate"]]
        rows.append({"network": network, "way": name, "precision": precision, "threads": threads, "images": images, "tests": tests,
                     "images_per_second": images / middle["train"], "epoch_seconds": middle["train"] + middle["evaluate"],
                     "ratio": pair[0] / pair[1], "input_microseconds": 1e6 * middle["inputs"] / images,
                     "accuracy_pct": [statistics.median(s["accuracy"][k] for s in samples[name]) for k in (0, 1)],
                     "flops_per_second": work * images / middle["train"], "memory_bytes": samples[name][-1]["memory"],
                     "train_seconds": [sample["train"] for sample in samples[name]]})
    return rows


def processes(options: argparse.Namespace, device: torch.device) -> list[dict]:
    """Several runs of the small cnn at once: is the machine's throughput higher than that of one after the other?"""
    rows = []
    for count in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "MNIST/mnist.py"), "--epochs", "3", "--quiet", "--device", str(device),
                       "--data-dir", str(options.data_dir), "--results-dir", folder, "--limit", "20000"]
            jobs = [subprocess.Popen([*command, "--seed", str(seed)], stdout=subprocess.DEVNULL,
                                     env={**os.environ, "OMP_NUM_THREADS": "1"}) for seed in range(count)]
            if any([job.wait() for job in jobs]):  # a list: wait for all of them
                raise SystemExit(f"error: one of {count} runs at once failed")
            epochs = [json.loads(line) for path in Path(folder).rglob("*.jsonl") for line in path.read_text().splitlines()]
            seconds = [line["seconds"] for line in epochs if line["event"] == "epoch" and line["epoch"] == 2]
        # the heads of a run take turns, so an epoch of both takes the sum of two lines
        rows.append({"processes": count, "images_per_second": count * 20_000 / (2 * statistics.mean(seconds))})
        print(f"cnn, {count} runs at once: {rows[-1]['images_per_second']:,.0f} images/s in sum, both heads", flush=True)
    return rows


def torchruns(options: argparse.Namespace, device: torch.device) -> list[dict]:
    """One run of vgg5 by several processes that share each batch, one on each GPU; on a CPU, one on each core."""
    rows, images = [], 60_000 if device.type == "cuda" else 2_000
    for count in options.torchrun:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
                       str(ROOT / "MNIST/mnist.py"), "--network", "vgg5", "--head", "spinal", "--epochs", "3", "--quiet",
                       "--limit", str(images), "--device", device.type, "--data-dir", str(options.data_dir),
                       "--results-dir", folder, "--no-download"]
            done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"error: {count} processes by torchrun failed: {done.stderr.strip().splitlines()[0]}")
            (log,) = Path(folder).rglob("*.jsonl")
            seconds = [line["seconds"] for line in map(json.loads, log.read_text().splitlines()) if line.get("epoch", 0) > 1]
        rows.append({"processes": count, "images": images, "images_per_second": images / statistics.mean(seconds)})
        print(f"vgg5 by {count} processes: {rows[-1]['images_per_second']:,.0f} images/s, evaluation included", flush=True)
    return rows


# ---- The page -----------------------------------------------------------------------------------------------------------
def table(records: list[dict]) -> str:
    """A section for each device."""
    parts = []
    for record in records:
        cuda = record["device"] == "cuda"
        parts.append(f"### {record['device_name']}\n\n{record['date']}, torch {record['torch']}, {record['cores']} cores, load of the "
                     f"machine before the first measurement {record['load']:.1f}; medians of {record['repeats']} repeats.\n")
        head = ["Network", "Way", "Threads", "Images", "Images/s", "Times the reference", "Input, µs an image",
                "Share of matrix peak, %", "FC, %", "Spinal, %"] + ["Memory, MiB"] * cuda
        parts.append("| " + " | ".join(head) + " |\n|---|---|" + "---:|" * (len(head) - 2))
        for row in record["rows"]:
            share = 100 * row["flops_per_second"] / record["matrix_peak"][row["precision"]]
            cells = [row["network"], row["way"], row["threads"], f"{row['images']:,}", f"{row['images_per_second']:,.0f}",
                     f"{row['ratio']:.1f}", f"{row['input_microseconds']:.1f}", f"{share:.0f}",
                     *(f"{value:.1f}" for value in row["accuracy_pct"])]
            cells += [f"{row['memory_bytes'] / 2**20:.0f}"] if cuda else []
            parts.append("| " + " | ".join(map(str, cells)) + " |")
        for row in record["processes"]:
            parts.append(f"{'' if row is not record['processes'][0] else chr(10)}- cnn, {row['processes']} run"
                         f"{'s' if row['processes'] > 1 else ''} at once: {row['images_per_second']:,.0f} images/s in sum")
        for row in record.get("torchrun", []):
            parts.append(f"- vgg5, Spinal, one run by {row['processes']} process{'es' if row['processes'] > 1 else ''} (torchrun): "
                         f"{row['images_per_second']:,.0f} images/s, evaluation included")
        parts.append("")
    return "\n".join(parts)


def write_pages() -> None:
    """results/bench.md and the part of README.md, from results/bench/*.json."""
    records = [json.loads(path.read_text()) for path in sorted((ROOT / "results/bench").glob("*.json"))]
    text = table(records)
    note = ("Images/s: training images a second, each through both networks (FC and Spinal). Times the reference: epoch with\n"
            "evaluation. Input: augmentation, batches, normalisation, without training. Share of matrix peak: counted\n"
            "operations (three times the forward pass) over those of a large matrix product in the same precision. FC, Spinal:\n"
            "test accuracy after those images alone, one pass; no result, but proof that each way learns.\n")
    (ROOT / "results/bench.md").write_text(f"# Speed\n\nMade by `make bench`.\n\n{note}\n{text}", encoding="utf-8")
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    if BEGIN in old and END in old:
        readme.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{text}{END}", old, flags=re.S), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where MNIST is, or is downloaded to")
    parser.add_argument("--no-download", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, help="training images of a repeat; default: 60,000 on CUDA, fewer on a CPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="so many cnn runs at once; none: leave it out")
    parser.add_argument("--torchrun", type=int, nargs="*", help="processes that share a run of vgg5; default: one, and as many as "
                        "there are GPUs, or cores up to 2")
    parser.add_argument("--pages-only", action="store_true", help="measure nothing, write the pages from the files there")
    options = parser.parse_args(argv)
    if options.pages_only:
        write_pages()
        return 0
    if options.repeats < 1 or (options.images is not None and options.images < 200) or any(
            n < 1 for n in [*options.processes, *(options.torchrun or [])]):
        print("error: --repeats, --processes and --torchrun must be 1 or more, --images 200 or more", file=sys.stderr)
        return 2
    script = load_script("MNIST/mnist")
    try:
        device = script.choose_device(options.device)
        if options.torchrun is None:
            devices = torch.cuda.device_count() if device.type == "cuda" else min(2, os.cpu_count() or 1)
            options.torchrun = [1, devices] if devices > 1 else []
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        facts = script.provenance(device)
        rows = [row for network in options.networks for row in measure(script, network, options, device)]
        peaks = {precision: matrix_peak(device, precision) for precision in ("fp32", "bf16")}
        record = {"device": device.type, "device_name": facts["device_name"], "torch": torch.__version__, "load": load,
                  "python": platform.python_version(), "cores": os.cpu_count(), "date": facts["started"][:10],
                  "repeats": options.repeats, "matrix_peak": peaks, "rows": rows, "processes": processes(options, device),
                  "torchrun": torchruns(options, device)}
    except script.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    slug = re.sub(r"[^a-z0-9]+", "-", record["device_name"].lower()).strip("-")
    slug += f"-{os.cpu_count()}-cores" if device.type == "cpu" else ""
    path = ROOT / "results/bench" / f"{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_pages()
    print(f"\n{table([record])}\nWritten: {path.relative_to(ROOT)}, results/bench.md")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
