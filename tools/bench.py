"""How fast are the scripts, against the published way of training, on this machine and now?

    python tools/bench.py [--data-dir data] [--device auto]

Reference: the published loop, written anew as a plain one: a DataLoader without workers,
torchvision's transforms image by image, both networks on each batch, eager, under PyTorch's default
flags. Ours: what MNIST/mnist.py runs in fp32 (the same flags) and in bf16, on CUDA also in ieee
(fp32 without TF32); there, where a step is a CUDA graph, also without the graph and with
torch.compile in its place. Each way trains the FC and the Spinal network side by side and evaluates
both, as the published loop does. They take turns; the table has medians over --repeats. Each repeat
starts from fresh weights after an untimed warm-up, and accuracies are printed: a loop that does not
learn is no baseline. Then several runs of the small CNN at once: how many does this machine train
best?

Writes bench/DEVICE.json below --output, and from all files there bench.md. What ships is in results
itself (--output results); the default, results/tables, is the user's.

Exit status: 0 done, 2 a mistake of the user (such as data that are not there).
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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {"vgg5": 3_000, "cnn": 12_000}  # images of a repeat on a CPU; on CUDA all 60,000
HEADS = ["fc", "spinal"]


def load_script(name: str) -> ModuleType:
    """A script of this collection as a module, without running it."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Of the GPU, or the processor's model and what PyTorch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    match = re.search(r"model name.*: (.*)", text)
    model = match[1] if match else platform.processor() or "unknown processor"
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"


# ---- The published way --------------------------------------------------------------------------
class Images(Dataset):
    """Images in memory, through torchvision's transforms one at a time."""

    def __init__(self, images: Tensor, labels: Tensor, steps: list):
        self.images = images.cpu()
        self.labels = labels.cpu()
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = transforms.functional.to_pil_image(self.images[index])
        return self.transform(image), int(self.labels[index])


class Reference:
    """Both networks in the published loop. recipes: of the FC and of the Spinal head"""

    def __init__(self, script: ModuleType, recipes: list, data):
        recipe = recipes[0]
        self.device = data.train[1].device
        steps = [transforms.ToTensor(), transforms.Normalize(recipe.mean, recipe.std)]
        self.test = DataLoader(Images(*data.test, steps), batch_size=1_000)
        if recipe.augmentation:
            steps = [transforms.RandomPerspective(), transforms.RandomRotation(10), *steps]
        images = Images(*data.train, steps)
        self.train = DataLoader(images, batch_size=recipe.batch_size, shuffle=True)
        self.networks = [script.network_of(recipe).to(self.device) for recipe in recipes]
        self.optimizers = []
        for network in self.networks:
            if recipe.optimizer == "Adam":
                optimizer = torch.optim.Adam(network.parameters(), recipe.learning_rate)
            else:
                rate, momentum = recipe.learning_rate, recipe.momentum
                optimizer = torch.optim.SGD(network.parameters(), rate, momentum)
            self.optimizers.append(optimizer)

    def warm_up(self) -> None:
        images, labels = next(iter(self.train))
        self.step(images.to(self.device), labels.to(self.device))

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Trains both networks on a batch of normalised images."""
        for network, optimizer in zip(self.networks, self.optimizers, strict=True):
            loss = F.nll_loss(network.train()(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def epoch(self) -> None:
        for images, labels in self.train:
            self.step(images.to(self.device), labels.to(self.device))

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Accuracy of both networks in per cent."""
        right = [0, 0]
        count = 0
        for images, labels in self.test:
            images, labels = images.to(self.device), labels.to(self.device)
            count += len(labels)
            for k, network in enumerate(self.networks):
                right[k] += (network.eval()(images).argmax(1) == labels).sum().item()
        return [100 * x / count for x in right]

    def inputs(self) -> None:
        for images, _ in self.train:
            images.to(self.device)


# ---- Our way ------------------------------------------------------------------------------------
class Ours:
    """Both networks as the script trains them.

    step: "script", "plain" (without a graph on CUDA) or "compile"
    """

    def __init__(self, script: ModuleType, recipes: list, data, step: str = "script"):
        self.script = script
        self.recipe = recipes[0]
        self.data = data
        self.step = step
        self.passes = 0
        device = data.train[1].device
        self.trainers = []
        for recipe in recipes:
            trainer = script.TRAINER(script.network_of(recipe), recipe, device)
            if step == "compile":
                trainer.outputs = torch.compile(trainer.outputs, mode="reduce-overhead")
            if step != "script":
                trainer.graph_step = trainer.step
            self.trainers.append(trainer)

    def views(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The augmented images of one epoch, their labels and the batches."""
        self.passes += 1
        images, labels = self.data.train
        generator = torch.Generator().manual_seed(self.passes)
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        images = self.script.augment(images, self.recipe.augmentation, generator)
        return images, labels, order.split(self.recipe.batch_size)

    def train(self, images: Tensor, labels: Tensor, batches: list[Tensor]) -> None:
        for trainer in self.trainers:
            trainer.begin(1)
            trainer.epoch(images, labels, batches, self.recipe.learning_rate)

    def warm_up(self) -> None:
        images, labels = self.data.train
        order = torch.arange(5 * self.recipe.batch_size, device=labels.device)
        self.train(images, labels, order[: len(labels)].split(self.recipe.batch_size))

    def epoch(self) -> None:
        self.train(*self.views())

    def evaluate(self) -> list[float]:
        """Accuracy of both networks in per cent."""
        rights = [trainer.evaluate(*self.data.test)[1] for trainer in self.trainers]
        return [self.script.percent(right) for right in rights]

    def inputs(self) -> None:
        images, _, batches = self.views()
        trainer = self.trainers[0]
        for index in batches:
            (images[index].float() / 255 - trainer.mean) / trainer.std


# ---- Measuring ----------------------------------------------------------------------------------
def timed(work: Callable, device: torch.device) -> float:
    """Seconds that it takes."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def flops_per_image(script: ModuleType, recipes: list) -> float:
    """Of a training step of both heads: three times the forward pass, as PyTorch counts it."""
    total = 0
    for recipe in recipes:
        network = script.network_of(recipe).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 1, 28, 28))
        total += 3 * counter.get_total_flops()
    return total


def peaks(device: torch.device, precision: str) -> dict[str, float]:
    """Operations a second of a large matrix product and of a large convolution: best of several.

    Which of them is faster depends on processor and library; the larger one is the peak.
    """
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = 8192 if cuda else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    count, channels = (512 if cuda else 16), 256
    images = torch.randn(count, channels, 28, 28, device=device, dtype=dtype)
    images = images.to(memory_format=torch.channels_last)
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
    layer = layer.to(memory_format=torch.channels_last)
    with torch.no_grad():
        product = min(timed(lambda: a @ b, device) for _ in range(6))
        convolution = min(timed(lambda: layer(images), device) for _ in range(6))
    work = 2 * count * 28 * 28 * 9 * channels**2
    return {"product": 2 * size**3 / product, "convolution": work / convolution}


def sample_of(way: Reference | Ours, device: torch.device) -> dict:
    """One repeat: seconds of training, evaluation and input alone, accuracy, memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    way.warm_up()
    sample = {"train": timed(way.epoch, device)}
    synchronise(device)
    began = time.perf_counter()
    sample["accuracy"] = way.evaluate()
    sample["evaluate"] = time.perf_counter() - began
    sample["inputs"] = timed(way.inputs, device)
    sample["memory"] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return sample


def ways_of(cuda: bool, compiled: bool) -> dict[str, tuple[str, str | None]]:
    """By name: precision, and the step of Ours; None: the reference."""
    ways = {"reference": ("fp32", None)}
    for precision in ["fp32", "ieee", "bf16"] if cuda else ["fp32", "bf16"]:
        ways[f"ours, {precision}"] = (precision, "script")
        if cuda and precision != "ieee":
            ways[f"ours, {precision} without graph"] = (precision, "plain")
        if cuda and compiled and precision != "ieee":
            ways[f"ours, {precision} with torch.compile"] = (precision, "compile")
    return ways


def measure(
    script: ModuleType, network: str, args: argparse.Namespace, device: torch.device
) -> list[dict]:
    """One row for each way of training this network."""
    recipes = [script.recipe_of(network, head, "published") for head in HEADS]
    data = script.load_data(args.data_dir, recipes[0], not args.no_download, device)
    limit = args.images or (None if device.type == "cuda" else NETWORKS[network])
    tests = max(1_000, (limit or 60_000) // 6)
    data.train = tuple(part[:limit] for part in data.train)
    data.test = tuple(part[:tests] for part in data.test)
    ways = ways_of(device.type == "cuda", not args.no_compile)
    samples = {name: [] for name in ways}
    tf32 = torch.backends.cudnn.allow_tf32
    for repeat in range(args.repeats):
        for name, (precision, step) in ways.items():
            if repeat and step == "compile":  # a minute of compilation for seconds of training
                continue
            torch.manual_seed(0)
            torch.backends.cudnn.allow_tf32 = tf32 and precision != "ieee"
            if step is None:
                way = Reference(script, recipes, data)
            else:
                torch._dynamo.reset()  # it compiles at most eight times, then runs eagerly
                changed = [replace(recipe, precision=precision) for recipe in recipes]
                way = Ours(script, changed, data, step)
            samples[name].append(sample_of(way, device))
            accuracies = "FC {:.1f} %, Spinal {:.1f} %".format(*samples[name][-1]["accuracy"])
            rate = len(data.train[1]) / samples[name][-1]["train"]
            print(f"{network}, {name}: {rate:,.0f} images/s, {accuracies}", flush=True)
    torch.backends.cudnn.allow_tf32 = tf32
    work = flops_per_image(script, recipes)
    return rows_of(network, ways, samples, (len(data.train[1]), len(data.test[1])), work)


def rows_of(
    network: str, ways: dict, samples: dict[str, list[dict]], counts: tuple[int, int], work: float
) -> list[dict]:
    """Medians. counts: training and test images; work: operations an image"""
    images, tests = counts
    whole = {}
    for name, found in samples.items():
        whole[name] = statistics.median(x["train"] + x["evaluate"] for x in found)
    rows = []
    for name, (precision, _) in ways.items():
        found = samples[name]
        train = statistics.median(x["train"] for x in found)
        inputs = statistics.median(x["inputs"] for x in found)
        accuracies = zip(*(x["accuracy"] for x in found), strict=True)
        rows.append(
            {
                "network": network,
                "way": name,
                "precision": precision,
                "threads": torch.get_num_threads(),
                "images": images,
                "tests": tests,
                "images_per_second": images / train,
                "epoch_seconds": whole[name],
                "ratio": whole["reference"] / whole[name],
                "input_microseconds": 1e6 * inputs / images,
                "accuracy_pct": [statistics.median(values) for values in accuracies],
                "flops_per_second": work * images / train,
                "memory_bytes": found[-1]["memory"],
                "train_seconds": [x["train"] for x in found],
            }
        )
    return rows


def runs_at_once(args: argparse.Namespace, device: torch.device) -> list[dict]:
    """Images a second of several runs of the small CNN together, from the second epoch on."""
    cuda = device.type == "cuda"
    command = [sys.executable, str(ROOT / "MNIST/mnist.py"), "--quiet", "--no-download"]
    command += ["--epochs", "15"] if cuda else ["--epochs", "3", "--limit", "20000"]
    command += ["--device", str(device), "--data-dir", str(args.data_dir)]
    rows = []
    for count in args.processes or ([1, 2, 4, 8, 12] if cuda else [1, 2]):
        with tempfile.TemporaryDirectory() as folder:
            jobs = []
            for seed in range(count):
                more = ["--results-dir", folder, "--seed", str(seed)]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                job = subprocess.Popen(
                    [*command, *more], stdout=subprocess.DEVNULL, env=environment
                )
                jobs.append(job)
            if sum([job.wait() for job in jobs]):  # a list: all of them are waited for
                raise ValueError(f"one of {count} runs at once failed")
            lines = []
            for path in Path(folder).rglob("*.jsonl"):
                lines += map(json.loads, path.read_text().splitlines())
        seconds = statistics.median(x["seconds"] for x in lines if x.get("epoch", 0) > 1)
        rate = count * lines[0]["data"]["train"] / seconds
        rows.append({"processes": count, "images_per_second": rate})
        print(f"cnn, {count} runs at once: {rate:,.0f} images/s of one head in sum", flush=True)
    return rows


# ---- The page -----------------------------------------------------------------------------------
NOTE = """Way: how both networks (FC and Spinal) are trained. *reference*: the published loop,
written anew as a plain one (a DataLoader without workers, torchvision's transforms image by image,
eager). *ours*: what `MNIST/mnist.py` runs. Images/s: training images a second, each through both
networks. Times the reference: epoch with evaluation. Input: augmentation, batches, normalisation,
without training. Share of peak: counted operations (three times the forward pass) over those of a
large matrix product or a large convolution in the same precision, whichever is faster. fp32:
PyTorch's default flags, for the reference as for ours; on CUDA convolutions then compute in TF32,
in ieee they do not. Writing checkpoints is not in these numbers, nor in the seconds of an epoch in
a log. That each way learns is checked by its accuracy after so few images, which is no result and
stands in `bench/*.json`."""
TRIED = """## Tried, and left alone

Measured by hand on an AMD EPYC (one thread, CPU seconds, taking turns); no log of it was kept, and
`make bench` does not repeat it. How many times as fast as the script each would be:

| What | Times as fast |
|---|---:|
| torch.compile, small CNN and VGG-5 | 1.05 and 0.99 |
| all seeds in one network by vmap | 0.6 |
| ten seeds in one network by grouped convolutions | 1.15 |
| fused optimisers | 1.0 |
| denormal numbers flushed to zero | 1.0 |
| `torch.set_float32_matmul_precision` | 1.0 |
| VGG-5 in bf16 (`--precision bf16`, a departure; on Zen 4) | 1.9 |

A training step of VGG-5 ran at 80 % of what oneDNN's convolutions reach there: in fp32 no more than
a factor of 1.25 is left.
"""
TITLES = [
    "Network",
    "Way",
    "Threads",
    "Images",
    "Images/s",
    "Times the reference",
    "Input, µs an image",
    "Share of peak, %",
]


def peak_of(record: dict, precision: str) -> float:
    """Operations a second. Records of 2026-11-21 know the matrix product alone."""
    if "peaks" in record:
        return max(record["peaks"][precision].values())
    return record["matrix_peak"][precision]


def table(record: dict) -> str:
    """The section of one device."""
    cuda = record["device"] == "cuda"
    titles = TITLES + ["Memory, MiB"] * cuda
    text = f"{record['date']}, torch {record['torch']}, {record['cores']} cores, load before the "
    text += f"first measurement {record['load']:.1f}; medians of {record['repeats']} repeats."
    if record.get("glibc_tunables"):
        text += f" Large pages: GLIBC_TUNABLES={record['glibc_tunables']}, as make sets it."
    if "peaks" not in record:
        text += " The peak is that of a matrix product alone."
    lines = [f"## {record['device_name']}\n", f"{text}\n"]
    lines += ["| " + " | ".join(titles) + " |", "|---|---|" + "---:|" * (len(titles) - 2)]
    for row in record["rows"]:
        share = 100 * row["flops_per_second"] / peak_of(record, row["precision"])
        cells = [row["network"], row["way"], row["threads"], f"{row['images']:,}"]
        cells += [f"{row['images_per_second']:,.0f}", f"{row['ratio']:.2f}"]
        cells += [f"{row['input_microseconds']:.1f}", f"{share:.0f}"]
        if cuda:
            cells.append(f"{row['memory_bytes'] / 2**20:.0f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines.append("")
    for row in record["processes"]:
        runs = f"{row['processes']} run{'s' if row['processes'] > 1 else ''} at once"
        lines.append(f"- cnn, {runs}: {row['images_per_second']:,.0f} images/s of one head in sum")
    return "\n".join(lines) + "\n"


def write_page(folder: Path) -> None:
    """bench.md from bench/*.json."""
    records = [json.loads(path.read_text()) for path in sorted((folder / "bench").glob("*.json"))]
    text = "\n".join(map(table, records))
    page = (
        f"# Speed\n\nMade by `make bench`, but for the last section.\n\n{NOTE}\n\n{text}\n{TRIED}"
    )
    (folder / "bench.md").write_text(page, encoding="utf-8")


# ---- Command line -------------------------------------------------------------------------------
def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. A mistake ends the process with status 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data"), help="where MNIST is, or is downloaded to")
    add("--no-download", action="store_true", help="use the data that are there")
    add("--device", default="auto", help="cpu, cuda, cuda:1; default: cuda if there is one")
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: both")
    add("--images", type=int, help="of a repeat; default: all on CUDA, fewer on a CPU")
    add("--repeats", type=int, default=3, help="default: 3")
    add("--processes", type=int, nargs="+", help="runs at once; default: 1 2, on CUDA up to 12")
    add("--only", choices=["networks", "processes"], help="one half; the other one stays")
    add("--no-compile", action="store_true", help="without torch.compile, which takes minutes")
    default = ROOT / "results/tables"
    add("--output", type=Path, default=default, help="default: results/tables")
    add("--page-only", action="store_true", help="write the page from the files there")
    args = parser.parse_args(argv)
    if args.repeats < 1 or min(args.processes or [1]) < 1 or (args.images or 500) < 500:
        parser.error("--repeats and --processes must be 1 or more, --images 500 or more")
    return args


def run_bench(args: argparse.Namespace) -> None:
    """Measures, and writes record and page."""
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.zeros(1, device=name).device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)  # as many runs as cores are faster than one run on all of them
    name = device_name(device)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if device.type == "cpu":
        slug += f"-{os.cpu_count()}-cores"
    path = args.output / "bench" / f"{slug}.json"
    record = {"rows": [], "processes": []}
    if args.only and path.exists():
        record |= json.loads(path.read_text(encoding="utf-8"))
    record |= {"device": device.type, "device_name": name, "repeats": args.repeats}
    record |= {"load": os.getloadavg()[0], "cores": os.cpu_count()}
    record["glibc_tunables"] = os.environ.get("GLIBC_TUNABLES", "")  # large pages of memory
    record |= {"torch": torch.__version__, "python": platform.python_version()}
    record["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    if args.only != "processes":
        script = load_script("MNIST/mnist")
        record["rows"] = []
        for network in args.networks:
            record["rows"] += measure(script, network, args, device)
        record["peaks"] = {}
        for precision in sorted({row["precision"] for row in record["rows"]}):
            torch.backends.cudnn.allow_tf32 = precision != "ieee"
            record["peaks"][precision] = peaks(device, precision)
    if args.only != "networks":
        record["processes"] = runs_at_once(args, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_page(args.output)
    print(f"\n{table(record)}\nWritten: {path}, {args.output / 'bench.md'}")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.page_only:
        write_page(args.output)
        return 0
    try:
        run_bench(args)
    except (ValueError, OSError, RuntimeError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
