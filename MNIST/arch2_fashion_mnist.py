# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "tqdm>=4.66"]
# ///
"""Fashion-MNIST, Arch2: Spinal layers on pixels and convolutions. In no table of the paper.

    python arch2_fashion_mnist.py

The network is in the authors' scripts, not in the paper's tables. It has Spinal layers of width 300
on the pixels (10 layers) and on the outputs of both convolutions (8 layers each), and no FC head to
compare with; it is larger than the small CNN. It trains for 200 epochs; a GPU helps. Each run
writes one log, results/logs/arch2_fashion_mnist/NAME.jsonl, and prints its accuracy. If you
interrupt a run, the same command continues it after the last finished epoch. The data go to the
folder data.

--protocol published (the default) trains as the authors' script does. --protocol corrected mends
faults that results/audit.md explains:
  Q13  the optimiser keeps its momentum, and a new rate is drawn only without an improvement;
       published: a new optimiser and a new rate after every epoch beyond 50
  Q15  the epoch to report is chosen on 5,000 held-out training images, not on the test images
  Q17  images are normalised by the training images' mean and deviation, not by 0.5 and 0.5
"""

# >>> shared: imports (origin MNIST/mnist.py; edit there, then: make sync)
import argparse
import base64
import copy
import hashlib
import json
import math
import os
import re
import socket
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

try:
    import numpy
    import torch
    import torchvision
    from torch import Tensor, nn
    from torch.nn import functional as F
    from tqdm import tqdm
except ImportError as error:
    print(f"error: {error}: pip install torch torchvision numpy tqdm, or uv run", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)
# <<< shared: imports

# ---- Facts of this experiment -------------------------------------------------------------------
SCRIPT = "arch2_fashion_mnist"
DATASET = "Fashion-MNIST"
FIRST_FILE = "FashionMNIST/raw/train-images-idx3-ubyte"  # below --data-dir
FINGERPRINT = "ca3ab2a37f845e1b"  # of the official images and labels; None: not known
LABELS = range(10)
COUNTS = [60_000, 10_000]  # of the official training and test images
HEADS = ["spinal"]
NETWORKS = ["arch2"]
SMALL = ["arch2"]  # one CPU thread is best for it
PAPER = {}  # it prints no number for this


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers of a run. The log repeats it as its `settings`."""

    mean: list[float]  # of each channel, for pixels from 0 to 1; empty: to be measured
    std: list[float]
    augmentation: list[str]
    network: str = "cnn"
    head: str = "fc"
    layers: int = 1  # hidden layers of the head
    width: int = 50  # neurons in each of them
    fc_dropout: float = 0.5  # before the output layer
    protocol: str = "published"
    epochs: int = 8
    batch_size: int = 64
    optimizer: str = "SGD"
    momentum: float = 0.5  # of SGD
    learning_rate: float = 0.01  # of the first epoch
    rate_rule: str = "constant"  # what next_rate does
    selection: str = "last"  # the epoch to report: "last", "best_test" or the best on "heldout"
    heldout: int = 0  # one in so many training images is held out
    precision: str = "fp32"
    limit: int | None = None  # use only so many training and test images
    classes: int = 10  # outputs of the network
    first_label: int = 0  # what the first output stands for


ARCH2 = Recipe(
    mean=[0.5],
    std=[0.5],
    augmentation=["rotation10", "crop95"],
    network="arch2",
    head="spinal",
    layers=26,
    width=300,
    fc_dropout=0.0,
    epochs=200,
    learning_rate=0.005,
    rate_rule="5 lr U^3, no momentum, after epochs > 50",
    selection="best_test",
)
RECIPES = {("arch2", "spinal"): ARCH2}


def corrected(recipe: Recipe) -> Recipe:
    """The recipe without the faults that the docstring of this script lists."""
    return replace(
        recipe,
        protocol="corrected",
        rate_rule="5 lr U^3 after epochs > 50 if not improved",
        mean=[],
        std=[],
        heldout=12,
        selection="heldout",
    )


def next_rate(
    recipe: Recipe, epoch: int, rate: float, accuracy: float, best: float, u: float
) -> float:
    """The rate after this epoch. best: accuracy of the best one before it; u: random, 0 to 1"""
    if epoch <= 50:
        return rate
    if recipe.protocol == "corrected" and accuracy > best:
        return rate
    return 5 * recipe.learning_rate * u**3


def read_part(folder: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) uint8 and labels (N,) of the training or the test part."""
    part = torchvision.datasets.FashionMNIST(folder, train=train, download=download)
    return part.data.unsqueeze(1), part.targets


# >>> shared: data (origin MNIST/mnist.py; edit there, then: make sync)
# Settings that the command line can change, and their marks in the names of logs.
MARKS = {
    "epochs": "e",
    "batch_size": "b",
    "learning_rate": "lr",
    "limit": "limit",
    "fc_dropout": "drop",
    "precision": "",
}
# Hashes of the images in official training and test parts, to tell data sets apart.
KNOWN_IMAGES = {
    "741c988805d008ac": "MNIST",
    "6d87418db22cc802": "MNIST",
    "2e487a6c89124f78": "Fashion-MNIST",
    "c867c93ff9536059": "Fashion-MNIST",
}


def recipe_of(network: str, head: str, protocol: str, **changes) -> Recipe:
    """The recipe of the paper's row under this protocol, with those changes that are not None."""
    recipe = RECIPES[network, head]
    if protocol == "corrected":
        recipe = corrected(recipe)
    return replace(recipe, **{key: x for key, x in changes.items() if x is not None})


def head_name(recipe: Recipe) -> str:
    """fc, spinal6x8, ...; or fc10 for an FC head whose width, 10, is not the paper's."""
    if recipe.head == "spinal":
        return f"spinal{recipe.layers}x{recipe.width}"
    if recipe.width == RECIPES[recipe.network, "fc"].width:
        return "fc"
    return f"fc{recipe.width}"


@dataclass
class Data:
    """Images (N, C, H, W) uint8 and labels (N,) int64 on the device, and facts for the log."""

    train: tuple[Tensor, Tensor]
    heldout: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor]
    facts: dict


def seed_of(*purpose) -> int:
    """A seed made of its purpose, such as (0, "data", 5), so that no random state is saved."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def identify(parts: list[tuple[Tensor, Tensor]]) -> dict:
    """Facts for the log. Raises ValueError if the images and labels are of another data set."""
    whole = hashlib.sha256()
    for images, labels in parts:
        if len(images) != len(labels) or labels.unique().tolist() != list(LABELS):
            raise ValueError("there is not one label for each image, or a class is missing")
        whole.update(images.numpy())
        whole.update(labels.byte().numpy())
        digest = hashlib.sha256(images.numpy()).hexdigest()[:16]
        name = KNOWN_IMAGES.get(digest, DATASET)
        if name != DATASET:
            raise ValueError(f"these are the images of {name}")
    sha256 = whole.hexdigest()[:16]
    official = [len(labels) for _, labels in parts] == COUNTS
    if official and FINGERPRINT not in (None, sha256):
        raise ValueError("its images or labels are not the official ones")
    return {"sha256": sha256, "official": official, "verified": sha256 == FINGERPRINT}


def load_data(folder: Path, recipe: Recipe, download: bool, device: torch.device) -> Data:
    """Reads, checks and splits the data. Raises ValueError if they cannot be had or are wrong."""
    socket.setdefaulttimeout(60)  # seconds without a byte, after which a download has failed
    file = folder / FIRST_FILE
    try:
        parts = [read_part(folder, train, download) for train in (True, False)]
        facts = identify(parts)
        facts["verified"] |= match_archives(file.parent)
    except Exception as error:  # torchvision raises exceptions of many kinds
        reason = str(error).partition(" You can use download=True")[0] or repr(error)
        raise ValueError(
            f"{DATASET} cannot be had from {file.parent} ({reason}): put the official {file.name} "
            "and so on there, or leave out --no-download"
        ) from error
    (images, labels), test = [
        (x[: recipe.limit].to(device), y[: recipe.limit].long().to(device) - recipe.first_label)
        for x, y in parts
    ]
    heldout, count = None, 0
    if recipe.heldout:  # the same images are held out in all runs
        generator = torch.Generator().manual_seed(seed_of("heldout"))
        order = torch.randperm(len(images), generator=generator).to(device)
        count = max(1, len(images) // recipe.heldout)
        chosen, rest = order[:count].sort().values, order[count:].sort().values
        heldout = (images[chosen], labels[chosen])
        images, labels = images[rest], labels[rest]
    facts |= {"train": len(images), "heldout": count, "test": len(test[1])}
    return Data((images, labels), heldout, test, facts)


def measured(recipe: Recipe, images: Tensor) -> Recipe:
    """The recipe with mean and deviation of these images (N, C, H, W) uint8, unless it has some."""
    if recipe.mean:
        return recipe
    std, mean = torch.std_mean(images.float() / 255, (0, 2, 3))
    mean, std = numpy.round([mean.tolist(), std.tolist()], 4).tolist()
    return replace(recipe, mean=mean, std=std)


def augment(images: Tensor, steps: list[str], generator: torch.Generator) -> Tensor:
    """A random view of each image (N, C, S, S) uint8; `generator` is one of the CPU."""
    views = []
    for part in images.split(2_000):  # so many fit into the cache of a CPU
        for step in steps:
            part = AUGMENTATIONS[step](part, generator)
        views.append(part)
    return torch.cat(views)


# <<< shared: data


def match_archives(folder: Path) -> bool:
    """The fingerprint of this set is known, so that the downloaded archives tell nothing more."""
    return False


# >>> shared: warp (origin MNIST/mnist.py; edit there, then: make sync)
def warp(images: Tensor, matrices: Tensor, mode: str) -> Tensor:
    """Each image (N, C, S, S) uint8 through its own matrix (N, 3, 3), to (N, C, S, S) uint8.

    A matrix maps output pixels to input pixels, with the origin in the centre of the image. What
    comes from outside the image is black. mode: "nearest" or "bilinear"
    """
    size = images.shape[-1]
    line = torch.arange(size, device=images.device) + 0.5 - size / 2
    x, y = line.repeat(size), line.repeat_interleave(size)
    pixels = torch.stack([x, y, torch.ones_like(x)], 1)
    x, y, z = (pixels @ matrices.float().to(images.device).transpose(1, 2)).unbind(2)
    grid = (torch.stack([x / z, y / z], 2) / (size / 2)).view(-1, size, size, 2)
    # Like torchvision: a white image is warped too, and darkens what lies partly outside.
    white = torch.ones_like(images[:, :1]).float()
    both = torch.cat([images.float(), white], 1)
    both = F.grid_sample(both, grid, mode, align_corners=False)  # zeros from outside
    return (both[:, :-1] * both[:, -1:]).round().byte()


def rotation10(images: Tensor, generator: torch.Generator) -> Tensor:
    """torchvision's RandomRotation(10), with an angle for each image (N, C, S, S) uint8."""
    angle = torch.deg2rad((torch.rand(len(images), generator=generator) * 20 - 10).double())
    cos, sin = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    matrices = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1)
    return warp(images, matrices.view(-1, 3, 3), "nearest")


# <<< shared: warp
# >>> shared: resized_crop (origin MNIST/fashion_mnist.py; edit there, then: make sync)
def resampling(start: Tensor, length: Tensor, size: int) -> Tensor:
    """How much each pixel of a line counts for each pixel that replaces it: (2, N, size, size).

    `length` pixels from `start` on, both (2, N), are enlarged to `size` pixels, linearly.
    """
    pixels = torch.arange(size, device=start.device)
    start, length = start[..., None], length[..., None]
    places = ((pixels + 0.5) * (length / size) - 0.5).clamp(min=0)
    places = torch.minimum(places, length - 1) + start
    weights = (1 - (places[..., None] - pixels).abs()).clamp(min=0)
    return (weights * 2**22 + 0.5).floor() / 2**22  # Pillow's precision


def crop95(images: Tensor, generator: torch.Generator) -> Tensor:
    """torchvision's RandomResizedCrop(28, scale=(0.95, 1)) for each image (N, C, S, S) uint8.

    The first of ten random rectangles that fits into the image is enlarged to its size, or, if none
    fits, the whole image is kept. This changes little: most images lose one row or column (Q18).
    """
    count, size = len(images), images.shape[-1]
    area = size * size * (0.95 + 0.05 * torch.rand(count, 10, generator=generator))
    logarithm = math.log(3 / 4) + math.log(16 / 9) * torch.rand(count, 10, generator=generator)
    ratio = torch.exp(logarithm)  # of width and height
    sizes = torch.stack([torch.sqrt(area / ratio), torch.sqrt(area * ratio)]).round()
    fits = (sizes <= size).all(0)
    first = sizes[:, torch.arange(count), fits.int().argmax(1)]
    lengths = torch.where(fits.any(1), first, size).double()  # (2, N): heights and widths
    u = torch.rand(count, 2, dtype=torch.float64, generator=generator).T
    starts = (u * (size - lengths + 1)).floor()
    rows, columns = resampling(starts.to(images.device), lengths.to(images.device), size)
    # Pillow rounds after each of the two directions.
    narrow = (torch.einsum("nchw,nvw->nchv", images.double(), columns) + 0.5).floor()
    result = (torch.einsum("nchw,nvh->ncvw", narrow, rows) + 0.5).floor()
    return result.to(torch.uint8)


# <<< shared: resized_crop
AUGMENTATIONS = {"rotation10": rotation10, "crop95": crop95}


# >>> shared: spinal (origin MNIST/mnist.py; edit there, then: make sync)
def hidden_layer(inputs: int, width: int, dropout: float, batch_norm: bool) -> nn.Module:
    """(N, inputs) -> (N, width)"""
    norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, width), norm, nn.ReLU())


class SpinalLayers(nn.Module):
    """The hidden layers of a SpinalNet (paper, section III): (N, features) -> (N, layers * width).

    The features are cut into two halves, A and B. The first layer sees A. Each later layer sees B,
    A, B, ... in turns, followed by the output of the layer before it. All outputs are joined.
    """

    def __init__(
        self, features: int, layers: int, width: int, dropout: float = 0.0, batch_norm: bool = False
    ):
        super().__init__()
        self.half = features // 2
        self.hidden = nn.ModuleList()
        for k in range(layers):
            inputs = self.half if k == 0 else self.half + width
            self.hidden.append(hidden_layer(inputs, width, dropout, batch_norm))

    def forward(self, x: Tensor) -> Tensor:
        halves = x.split(self.half, 1)
        outputs = [self.hidden[0](halves[0])]
        for k, layer in enumerate(self.hidden[1:], start=1):
            outputs.append(layer(torch.cat([halves[k % 2], outputs[-1]], 1)))
        return torch.cat(outputs, 1)


# <<< shared: spinal
# >>> shared: arch2_network (origin MNIST/arch2_mnist.py; edit there, then: make sync)
class Arch2Trunk(nn.Module):
    """Spinal layers on the pixels and on both convolutions: (N, 1, 28, 28) -> (N, 26 * width)"""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, 5)
        self.conv2 = nn.Conv2d(10, 20, 5)
        self.dropout = nn.Dropout2d(0.5)
        self.raw = SpinalLayers(784, 10, width)
        self.low = SpinalLayers(1440, 8, width)
        self.high = SpinalLayers(320, 8, width)

    def forward(self, x: Tensor) -> Tensor:
        low = F.relu(F.max_pool2d(self.conv1(x), 2))  # (N, 10, 12, 12)
        high = F.relu(F.max_pool2d(self.dropout(self.conv2(low)), 2))  # (N, 20, 4, 4)
        outputs = [self.raw(x.flatten(1)), self.low(low.flatten(1)), self.high(high.flatten(1))]
        return torch.cat(outputs, 1)


def network_of(recipe: Recipe) -> nn.Module:
    """Trunk, head, output layer, log-softmax, on the CPU: (N, 1, 28, 28) -> (N, classes)

    Raises ValueError for sizes that this network cannot have.
    """
    if recipe.layers != 26 or recipe.fc_dropout:
        raise ValueError("arch2 has 10 + 8 + 8 Spinal layers: leave out --layers and --fc-dropout")
    trunk = Arch2Trunk(recipe.width)
    head = nn.Sequential(nn.Linear(26 * recipe.width, 50), nn.ReLU())
    return nn.Sequential(trunk, head, nn.Linear(50, recipe.classes), nn.LogSoftmax(1))


# <<< shared: arch2_network
# >>> shared: build_network (origin MNIST/mnist.py; edit there, then: make sync)
def build_network(
    network: str,
    head: str | None,
    *,
    protocol: str = "published",
    width: int | None = None,
    layers: int | None = None,
) -> nn.Module:
    """The network of one of the paper's rows, untrained, on the CPU: images to log-probabilities.

    width, layers: None for those of the row; head: None for "spinal"
    """
    return network_of(recipe_of(network, head or "spinal", protocol, width=width, layers=layers))


# <<< shared: build_network
# >>> shared: trainer (origin MNIST/mnist.py; edit there, then: make sync)
class Trainer:
    """Trains and tests one network. Within an epoch nothing is read back from the device."""

    def __init__(self, network: nn.Module, recipe: Recipe, device: torch.device):
        self.recipe = recipe
        self.device = device
        # channels_last changes no number and makes convolutions faster.
        self.network = network.to(device, memory_format=torch.channels_last)
        moments = torch.tensor([recipe.mean, recipe.std], device=device)
        self.mean, self.std = moments.view(2, -1, 1, 1)
        self.total = torch.zeros((), device=device)  # of the losses of an epoch's images
        self.cuda = device.type == "cuda"
        rate = recipe.learning_rate
        if self.cuda:
            rate = torch.tensor(rate, device=device)  # a CUDA graph notices no other change of it
            self.ordinary_steps = 0
            self.side = torch.cuda.Stream()
            self.graph = None
        weights = network.parameters()
        if recipe.optimizer == "Adam":
            self.optimizer = torch.optim.Adam(weights, rate, fused=True, capturable=self.cuda)
        else:
            # Unfused it would read the rate back from the device, which no graph can record.
            self.optimizer = torch.optim.SGD(weights, rate, recipe.momentum, fused=self.cuda)

    def outputs(self, images: Tensor) -> Tensor:
        """Log-probabilities (N, classes) of images (N, C, H, W) uint8."""
        x = (images.float() / 255 - self.mean) / self.std
        with torch.autocast(self.device.type, torch.bfloat16, self.recipe.precision == "bf16"):
            x = self.network[:2](x)  # trunk and head
        return self.network[2:](x.float())  # always fp32: in bf16 two classes would often be equal

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Trains on one batch, and adds the sum of its losses to the total."""
        self.optimizer.zero_grad()
        loss = F.nll_loss(self.outputs(images), labels)
        loss.backward()
        self.optimizer.step()
        self.total += loss.detach() * len(labels)

    def begin(self, epoch: int) -> None:
        """What is done before an epoch is trained; epochs count from 1."""
        self.network.train()

    def epoch(self, images: Tensor, labels: Tensor, batches: tqdm, rate: float) -> float:
        """Trains on all images, whose indices come in batches. Returns the mean loss."""
        self.total.zero_()
        group = self.optimizer.param_groups[0]
        if self.cuda:
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        for index in batches:
            whole = len(index) == self.recipe.batch_size  # the last batch may be smaller
            step = self.graph_step if self.cuda and whole else self.step
            step(images[index], labels[index])
        return float(self.total) / len(labels)

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """Mean loss on images (N, C, H, W) uint8 and labels (N,), and which are right (N,) bool."""
        self.network.eval()
        loss = 0
        right = []
        # On a CPU, large batches of a large network spend their time on memory pages.
        size = 1_000 if self.cuda else 100
        for part, truth in zip(images.split(1_000), labels.split(1_000), strict=True):
            outputs = torch.cat([self.outputs(batch) for batch in part.split(size)])
            loss += F.nll_loss(outputs, truth, reduction="sum")
            right.append(outputs.argmax(1) == truth)
        return float(loss) / len(labels), torch.cat(right)

    def graph_step(self, images: Tensor, labels: Tensor) -> None:
        """The same as `step`, but as a CUDA graph: all its short kernels start at once.

        Before PyTorch can record a step, it needs three ordinary ones on a stream of their own.
        """
        if self.ordinary_steps < 3:
            self.ordinary_steps += 1
            main = torch.cuda.current_stream()
            self.side.wait_stream(main)
            with torch.cuda.stream(self.side):
                self.step(images, labels)
            main.wait_stream(self.side)
            return
        if self.graph is None:
            self.batch = (images, labels)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step(images, labels)  # it is recorded, but not done
        self.batch[0].copy_(images)
        self.batch[1].copy_(labels)
        self.graph.replay()


# <<< shared: trainer
class RestartingTrainer(Trainer):
    """It loses its momentum where the released script makes a new optimiser (Q13)."""

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        if self.recipe.protocol == "published" and epoch > 50 + 1:
            for state in self.optimizer.state.values():
                state["momentum_buffer"].zero_()  # in place: a CUDA graph knows where it is


TRAINER = RestartingTrainer  # what trains the networks of this script


# >>> shared: training (origin MNIST/mnist.py; edit there, then: make sync)
def found(file: str, pattern: str) -> str:
    """What a system file of Linux says in the first group of the pattern, or "unknown"."""
    text = Path(file).read_text() if Path(file).exists() else ""
    return [*re.findall(pattern, text), "unknown"][0]


def provenance(device: torch.device) -> dict:
    """The program and the machine: what else can change the last digits of a result."""
    text = Path(__file__).read_text("utf-8").encode()  # with line ends as on Linux
    versions = {"torch": str(torch.__version__), "torchvision": torchvision.__version__}
    processor = found("/proc/cpuinfo", "model name.*: (.*)")
    facts = {
        "script_sha256": hashlib.sha256(text).hexdigest()[:16],
        "versions": versions,
        "device": device.type,
        "device_name": f"{processor} ({torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        versions["cudnn"] = torch.backends.cudnn.version()
        facts["device_name"] = torch.cuda.get_device_name()
        facts["capability"] = torch.cuda.get_device_capability()
        facts["driver"] = found("/proc/driver/nvidia/version", r"(\d+\.[\d.]+)")
        facts["cudnn_allow_tf32"] = torch.backends.cudnn.allow_tf32
        facts["matmul_allow_tf32"] = torch.backends.cuda.matmul.allow_tf32
    return facts


def write_log(path: Path, lines: list[dict]) -> None:
    """Writes JSON lines. Numbers get six digits, or null if they are not finite."""
    with path.open("w") as file:
        for line in lines:
            for key, x in line.items():
                if isinstance(x, float):
                    line = line | {key: float(f"{x:.6g}") if math.isfinite(x) else None}
            file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())  # the computer may lose its power


def compare(old: dict, new: dict) -> bool:
    """Compares the first lines of two logs: are they by the same text of the script?

    Raises ValueError if settings or data differ.
    """
    names = [key for key, x in new["settings"].items() if old["settings"].get(key) != x]
    if old["data"]["sha256"] != new["data"]["sha256"]:
        names.append("data")
    if names:
        raise ValueError(f"it was made with other {', '.join(names)}")
    return old["provenance"]["script_sha256"] == new["provenance"]["script_sha256"]


def percent(right: Tensor) -> float:
    """Of (N,) bool: how many are true."""
    return 100 * int(right.sum()) / len(right)


@dataclass
class Run:
    """One network that is trained with one seed."""

    recipe: Recipe
    seed: int
    data: Data
    device: torch.device
    args: argparse.Namespace

    def __post_init__(self) -> None:
        recipe = self.recipe
        facts = self.data.facts
        row = recipe_of(recipe.network, recipe.head, recipe.protocol)
        departures = [key for key in MARKS if getattr(recipe, key) != getattr(row, key)]
        label = f"{recipe.network}-{head_name(recipe)}"
        parts = [label, recipe.protocol]
        parts += [f"{MARKS[key]}{getattr(recipe, key)}" for key in departures]
        self.paper = {}  # the paper's numbers, if this run can be compared with them
        if not facts["official"]:
            parts.append(f"data{facts['sha256'][:8]}")
        elif not departures:
            self.paper = PAPER.get(label, {})
        self.name = "-".join([*parts, f"s{self.seed}"])
        self.watched = "heldout" if self.data.heldout else "test"
        results = self.args.results_dir.expanduser()
        self.log = results / "logs" / SCRIPT / f"{self.name}.jsonl"
        self.unfinished_log = self.log.with_suffix(".jsonl.part")
        self.checkpoint = self.log.with_suffix(".pt")
        self.weights = results / "weights" / SCRIPT / f"{self.name}.pt"
        self.start = {
            "event": "start",
            "schema": 3,
            "script": SCRIPT,
            "run": self.name,
            "seed": self.seed,
            "settings": {"dataset": DATASET, **asdict(recipe)},
            "departures": departures,
            "data": facts,
            "provenance": provenance(self.device),
        }

    def perform(self) -> float:
        """Trains what is left to train, and prints the result. Returns the accuracy in per cent."""
        if self.args.overwrite:
            for file in (self.log, self.checkpoint, self.weights):
                file.unlink(missing_ok=True)
        self.prepare()
        note = ""
        try:
            if self.log.exists():
                note = self.read_end()
                self.checkpoint.unlink(missing_ok=True)
            elif self.checkpoint.exists():
                self.resume()
        except Exception as error:  # damaged files raise exceptions of many kinds
            reason = error if type(error) is ValueError else f"damaged: {type(error).__name__}"
            raise ValueError(
                f"the log or checkpoint {self.log.with_suffix('')} cannot be used ({reason}): "
                "--overwrite starts anew"
            ) from error
        if not note:
            while self.state["epoch"] < self.recipe.epochs:
                self.train_epoch()
            self.finish()
        accuracy = self.end["selected_test_accuracy_pct"]
        text = f"{note}{DATASET} {self.name}: {accuracy:.2f} %"
        if self.paper:
            numbers = ", ".join(f"{key} {x}" for key, x in self.paper.items())
            text += f" (paper, as published: {numbers})"
        if not self.data.facts["verified"]:
            text += ", data not verified"
        print(f"{text}\n  log: {self.log}", flush=True)
        if self.args.save_weights:
            print(f"  weights: {self.weights}")
        return accuracy

    def read_end(self) -> str:
        """Reads the finished log. Returns a note about it; raises ValueError if it does not fit."""
        lines = self.log.read_text().splitlines()
        first, self.end = json.loads(lines[0]), json.loads(lines[-1])
        same_script = compare(first, self.start)
        if self.args.save_weights and not self.weights.exists():
            raise ValueError("its weights were not saved")
        made = self.end["ended"]
        if not same_script:
            made += " by another version of this script"
        return f"already finished {made} (--overwrite runs it again): "

    def prepare(self) -> None:
        """Builds the network and the state before the first epoch."""
        recipe = self.recipe
        torch.manual_seed(seed_of(self.seed, "weights"))
        network = network_of(recipe)
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        self.start["parameters"] = sum(x.numel() for x in network.parameters())
        self.start["fc_multiplications"] = sum(x.weight.numel() for x in linear)
        self.trainer = TRAINER(network, recipe, self.device)
        # lines: of the log; epoch: the last finished one; rate: of the next one; best: accuracy
        self.state = {
            "lines": [self.start],
            "epoch": 0,
            "rate": recipe.learning_rate,
            "best": -1.0,
        }

    def resume(self) -> None:
        """Goes on from the checkpoint. Raises an exception if it is not one of this run."""
        saved = torch.load(self.checkpoint, "cpu")  # a GPU's memory may be full of other things
        if not compare(saved["state"]["lines"][0], self.start):
            raise ValueError("it was made by another version of this script")
        self.trainer.network.load_state_dict(saved["network"])
        optimizer = self.trainer.optimizer.state_dict()  # with the options for this device
        optimizer["state"] = saved["optimizer"]
        self.trainer.optimizer.load_state_dict(optimizer)
        self.state = saved["state"]
        epoch = self.state["epoch"]
        machine = self.start["provenance"]
        self.state["lines"].append({"event": "resume", "epoch": epoch, "provenance": machine})
        print(f"{self.name} goes on after epoch {epoch}")

    def train_epoch(self) -> None:
        """Trains, tests and saves one epoch."""
        began = time.monotonic()
        recipe, state, trainer = self.recipe, self.state, self.trainer
        epoch, rate = state["epoch"] + 1, state["rate"]
        title = f"{self.name} epoch {epoch}/{recipe.epochs}"
        # The head is not in this seed: both heads get the same images in the same order.
        generator = torch.Generator().manual_seed(seed_of(self.seed, "data", epoch))
        images, labels = self.data.train
        order = torch.randperm(len(labels), generator=generator).to(self.device)
        images = augment(images, recipe.augmentation, generator)
        torch.manual_seed(seed_of(self.seed, "dropout", epoch))
        # disable=None: no bar unless in a terminal
        batches = order.split(recipe.batch_size)
        batches = tqdm(batches, title, leave=False, disable=self.args.quiet or None)
        trainer.begin(epoch)
        train_loss = trainer.epoch(images, labels, batches, rate)
        loss, right = trainer.evaluate(*(self.data.heldout or self.data.test))
        accuracy = percent(right)
        generator.manual_seed(seed_of(self.seed, "rate", head_name(recipe), epoch))
        u = float(torch.rand((), generator=generator, dtype=torch.float64))
        state["rate"] = next_rate(recipe, epoch, rate, accuracy, state["best"], u)
        if accuracy > state["best"]:
            state |= {"best": accuracy, "best_epoch": epoch}
            state["best_weights"] = copy.deepcopy(trainer.network.state_dict())
        seconds = time.monotonic() - began
        state |= {"epoch": epoch, "train_loss": train_loss}
        line = {
            "event": "epoch",
            "epoch": epoch,
            "learning_rate": rate,
            "train_loss": train_loss,
            f"{self.watched}_loss": loss,
            f"{self.watched}_accuracy_pct": accuracy,
            "seconds": seconds,
        }
        state["lines"].append(line)
        self.save()
        if not self.args.quiet:
            numbers = f"{self.watched} {accuracy:.2f} %, {seconds:.1f} s"
            print(f"{title}: train loss {train_loss:.4f}, {numbers}", flush=True)

    def save(self) -> None:
        """Writes the unfinished log and the checkpoint."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        write_log(self.unfinished_log, self.state["lines"])
        saved = {
            "state": self.state,
            "network": self.trainer.network.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict()["state"],
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        with temporary.open("wb", buffering=0) as file:
            torch.save(saved, file)
            os.fsync(file.fileno())
        os.replace(temporary, self.checkpoint)  # in one go, as the process may be killed any time

    def finish(self) -> None:
        """Tests the epoch that is reported, and writes the log with its last line."""
        state, network = self.state, self.trainer.network
        selected_epoch = state["epoch"]
        right = self.trainer.evaluate(*self.data.test)[1]
        last = percent(right)
        if self.recipe.selection != "last" and state["best_epoch"] < selected_epoch:
            selected_epoch = state["best_epoch"]
            network.load_state_dict(state["best_weights"])
            right = self.trainer.evaluate(*self.data.test)[1]
        bits = numpy.packbits(right.cpu()).tobytes()
        self.end = {
            "event": "end",
            "epochs": state["epoch"],
            "best_epoch": state["best_epoch"],
            "selected_epoch": selected_epoch,
            "outcome": "finished" if math.isfinite(state["train_loss"]) else "diverged",
            f"best_{self.watched}_accuracy_pct": state["best"],
            "last_test_accuracy_pct": last,
            "selected_test_accuracy_pct": percent(right),
            "test_correct": base64.b64encode(bits).decode(),  # one bit for each test image
            "seconds": sum(line.get("seconds", 0) for line in state["lines"]),
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_log(self.unfinished_log, [*state["lines"], self.end])
        if self.args.save_weights:
            self.weights.parent.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), self.weights)
        os.replace(self.unfinished_log, self.log)
        self.checkpoint.unlink(missing_ok=True)


NUMBERS = {  # arguments of the command line that are whole numbers, 1 or more
    "layers": "hidden layers of the Spinal head; default: as published",
    "width": "neurons in each of them, or of the FC head with --head fc",
    "epochs": "default: as published",
    "batch-size": "default: as published",
    "limit": "use the first LIMIT images: a quick try",
    "runs": "with seeds SEED, SEED + 1, ...; default: 1",
}
SWITCHES = {
    "no-download": "use the data that are there",
    "fetch-only": "download and check the data, train nothing",
    "save-weights": "keep the network in results/weights",
    "quiet": "print results only",
    "overwrite": "delete what earlier runs left, and start anew",
}


def positive(text: str) -> int:
    """A whole number of 1 or more from the command line."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. A mistake ends the process with status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--network", choices=NETWORKS, default=NETWORKS[0], help="default: %(default)s")
    add("--head", choices=[*HEADS, "both"], default="both")
    add("--protocol", choices=["published", "corrected"], default="published")
    for name, text in NUMBERS.items():
        add(f"--{name}", type=positive, help=text)
    add("--fc-dropout", type=float, help="before the output layer of either head")
    add("--lr", type=float, dest="learning_rate", help="of the first epoch; default: as published")
    add("--seed", type=int, default=0, help="of the first run; default: 0")
    add("--precision", choices=["fp32", "ieee", "bf16"], default="fp32", help="ieee: no TF32")
    add("--device", default="auto", help="cpu, cuda, cuda:1; default: cuda if there is one")
    add("--data-dir", type=Path, default="data")
    add("--results-dir", type=Path, default="results")
    for name, text in SWITCHES.items():
        add(f"--{name}", action="store_true", help=text)
    parser.set_defaults(runs=1)
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error("--seed must be 0 or more")
    if args.learning_rate is not None and not 0 < args.learning_rate < math.inf:
        parser.error("--lr must be more than 0")
    if args.head == "fc" and args.layers:
        parser.error("--layers belongs to the Spinal head: choose --head spinal or both")
    return args


def choose_device(args: argparse.Namespace) -> torch.device:
    """The device that the command line names, ready for use."""
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.zeros(1, device=name).device
    except Exception as error:  # PyTorch's text may name twenty devices
        raise ValueError(f"--device {name} cannot be used on this computer") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # graphs and random states are those of the current device
        if args.precision == "ieee":
            torch.backends.cudnn.allow_tf32 = False
    elif args.network in SMALL:
        torch.set_num_threads(1)  # more threads would only wait for each other
    return device


def announce(recipes: list[Recipe], data: Data, device: torch.device) -> None:
    """Prints what will be trained, on what and where."""
    recipe = recipes[0]
    heads = " and ".join(head_name(recipe) for recipe in recipes)
    print(f"{DATASET}, {recipe.network}, {recipe.protocol}: {heads}")
    print(f"{recipe.epochs} epochs of {len(data.train[1]):,} images on {device}")
    if device.type == "cpu" and recipe.network not in SMALL:
        print("all images take days on a CPU: use a GPU, or try --limit 2000 --epochs 2")


def print_difference(accuracies: list[float], papers: list[dict]) -> None:
    """Prints by how much the Spinal head is ahead. The lists are of FC, Spinal, FC, Spinal, ..."""
    seeds = len(accuracies) // 2
    gain = (sum(accuracies[1::2]) - sum(accuracies[::2])) / seeds
    fc, spinal = papers[0].get("average"), papers[1].get("average")
    paper = f"; paper, as published: {spinal - fc:+.2f}" if fc and spinal else ""
    print(f"Spinal - FC: {gain:+.2f} points (mean; number of seeds: {seeds}{paper})")


def reproduce(args: argparse.Namespace) -> None:
    """Does what the command line asks for."""
    device = choose_device(args)
    recipes = []
    for head in HEADS if args.head == "both" else [args.head]:
        changes = {key: getattr(args, key) for key in MARKS}
        if head == "spinal" or args.head == "fc":  # with both heads, --width is of the Spinal one
            changes |= {"layers": args.layers, "width": args.width}
        recipes.append(recipe_of(args.network, head, args.protocol, **changes))
    data = load_data(args.data_dir.expanduser(), recipes[0], not args.no_download, device)
    if args.fetch_only:
        return
    recipes = [measured(recipe, data.train[0]) for recipe in recipes]
    if not args.quiet:
        announce(recipes, data, device)
    accuracies, papers = [], []
    for seed in range(args.seed, args.seed + args.runs):
        for recipe in recipes:
            run = Run(recipe, seed, data, device, args)
            accuracies.append(run.perform())
            papers.append(run.paper)
    if len(recipes) == 2:
        print_difference(accuracies, papers)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 a mistake of the user, 130 stopped by Ctrl-C."""
    args = parse_arguments(argv)
    try:
        reproduce(args)
    except KeyboardInterrupt:
        print("stopped: the same command, without --overwrite, goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    return 0


# <<< shared: training

if __name__ == "__main__":
    sys.exit(main())
