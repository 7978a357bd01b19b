# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "pillow>=10.0", "tqdm>=4.66"]
# ///
"""Your own images with ImageNet weights: FC head against SpinalNet head. In no table of the paper.

    python tl_folder.py --images FOLDER                      resnet18: FC output only, Spinal 4 x W
    python tl_folder.py --images FOLDER --network vgg16_bn --width 512 --save-weights
    python tl_folder.py --classify IMAGE --network vgg16_bn  by the weights that were saved

FOLDER has a folder of images for each class. Either it has parts, which are folders with a folder
for each class: train and test, or train and val (which is the test then), or all three (then the
epoch is chosen on val). Or it has no parts. A part that is lacking is taken from the training
images of each class, drawn by a fixed seed: a fifth for the test, then a tenth to choose the epoch.
The log has these shares in `tested` and `heldout` (one in so many), and the counts of images. Each
class needs at least five training images. Photographs are read as they are stored, not turned.

The test images are used once, at the end. A log calls this protocol "corrected"; it is the only
one here. The rest is as in the paper's scripts for sets of some thousand images: 20 epochs of SGD
in batches of 24 at a rate of 0.001, a tenth of it after every 7 epochs. Views are those of the
script for ants and bees. W is the number of classes, and at least 20: so are most of the paper's
widths for wide_resnet101_2. --width and --layers choose others; each layer sees one half of the
network's features. All linear layers of the network's `fc` or `classifier` give way to the head;
what comes before them, such as dropout or a norm, stays.

--network is any of torchvision's for classification that has such a part, but not vit and swin (it
has another name), squeezenet (no linear layer in it), googlenet and inception_v3 (more outputs
while they train), and regnet_y_128gf (no weights of the kind that is used here, IMAGENET1K_V1).

--classify prints the most probable classes of one image, by each saved network of this --network
and --seed; FOLDER is not needed, but the logs in --results-dir are. Each run writes one log,
results/logs/tl_folder/NAME.jsonl, with the names of the classes; NAME has `data` and a fingerprint
of your images. Both heads of a seed train on the same views in the same order. If you interrupt a
run, the same command continues it. For two GPUs: `torchrun --nproc-per-node=2 tl_folder.py ...`,
once the weights are there (--fetch-only).
"""

# >>> shared: transfer_imports (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
import argparse
import base64
import copy
import hashlib
import json
import math
import os
import platform
import re
import socket
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

try:
    import numpy
    import torch
    import torchvision
    from PIL import Image
    from torch import Tensor, distributed, nn
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms
    from tqdm import tqdm
except KeyboardInterrupt:
    sys.exit(130)
except (ImportError, OSError) as error:
    reason = str(error).partition("\n")[0]
    print(
        f"error: {reason} (needed: torch, torchvision, numpy, pillow, tqdm; `uv run` brings them)",
        file=sys.stderr,
    )
    sys.exit(2)
# <<< shared: transfer_imports


# >>> shared: transfer_recipe (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
@dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers of a run. The log repeats it as its `settings`."""

    network: str  # its name in torchvision
    classes: int  # outputs of the network
    image_size: int  # side of the images that it sees
    epochs: int
    batch_size: int
    learning_rate: float  # of the first epoch
    mean: list[float]  # of each channel, for pixels from 0 to 1
    std: list[float]
    augmentation: list[list]  # of training images: names and arguments of torchvision's transforms
    evaluation: list[list]  # of all others
    stages: list[list[float]]  # of each: factor of the rate, and its end as a part of the epochs
    head: str = "fc"
    layers: int = 0  # hidden layers of the head
    width: int = 0  # neurons in each of them
    fc_dropout: float = 0.0  # after each hidden layer of the FC head
    flavour: str = ""  # of the Spinal head: a key of FLAVOURS
    head_ignored: bool = False  # the new head is there, but never called (Q1)
    protocol: str = "published"  # or a key of PROTOCOLS
    weights: str = "imagenet1k_v1"  # to start from, or "none"
    freeze: bool = False  # train the head alone
    momentum: float = 0.9  # of SGD; every 7 epochs of a stage divide the rate by ten
    selection: str = "best_test"  # the epoch to report: the best on the test or "heldout" images
    best_of_stage: bool = True  # the best starts anew with each stage, the last one's counts (Q8)
    heldout: int = 0  # one in so many training images is held out, if the set has no such part
    heldout_index: int | None = None  # its index modulo `heldout`; None: drawn by a fixed seed
    precision: str = "fp32"
    limit: int | None = None  # use only so many images of each part


# <<< shared: transfer_recipe
# ---- Facts of this experiment -------------------------------------------------------------------
@dataclass(frozen=True)
class FolderRecipe(Recipe):
    """A recipe that also says what the images are."""

    tested: int = 5  # one in so many training images is for the test, if there is no such part
    class_names: list[str] | None = None  # in the order of the outputs


SCRIPT = "tl_folder"
DATASET = "own images"
IMAGES = {"train": 0, "test": 0, "heldout": 0}  # so that yours never count as official
DEALT = []  # every class must be in every part
WHERE = "each class needs a folder with five images or more (see --help)"
PAPER = {}
UNFIT = ("vit_", "swin_", "squeezenet", "googlenet", "inception", "regnet_y_128gf")  # see above
FC = FolderRecipe(
    network="resnet18",
    classes=0,  # until the folder is known
    image_size=224,
    epochs=20,
    batch_size=24,
    learning_rate=0.001,
    mean=[0.485, 0.456, 0.406],
    std=[0.229, 0.224, 0.225],
    augmentation=[["RandomResizedCrop", 224, [0.08, 1.0]], ["RandomHorizontalFlip"]],
    evaluation=[["Resize", 256], ["CenterCrop", 224]],
    stages=[[1.0, 1.0]],
    selection="heldout",
    heldout=10,
)
ROWS = [FC]  # `adapt` adds those of the chosen network
PROTOCOLS = {"corrected": replace}  # which changes nothing


def places_of(folder: Path) -> dict[str, Path]:
    """The folders of the parts that there are; val without test is the test part."""
    places = [folder / name for name in ("train", "test", "val") if (folder / name).is_dir()]
    if folder / "train" not in places:
        places = [folder]
    return dict(zip(IMAGES, places, strict=False))


def read_parts(folder: Path, download: bool) -> tuple[dict, bool]:
    """Files and labels of the parts. False: nothing proves that they are official."""
    parts, classes = {}, None
    for name, place in places_of(folder).items():
        part = torchvision.datasets.ImageFolder(place)
        classes = classes or part.classes
        differing = set(part.classes) ^ set(classes)
        if differing:
            raise ValueError(f"only one of {place} and train has the class {min(differing)}")
        if any(Path(file).parent.parent != place for file, _ in part.samples):
            raise ValueError(f"{place} has images below the folders of its classes")
        parts[name] = tuple(numpy.array(x) for x in zip(*part.samples, strict=True))
    if min(numpy.bincount(parts["train"][1])) < 5:
        raise ValueError("a class has less than five images to train on")
    return parts, False


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


# >>> shared: transfer_script (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
RECIPES = {(row.network, row.head): row for row in ROWS}
NETWORKS = list(dict.fromkeys(row.network for row in ROWS))
HEADS = ["fc", "spinal"]
# Settings that the command line can change, and their marks in the names of logs.
MARKS = {
    "epochs": "e",
    "batch_size": "b",
    "learning_rate": "lr",
    "limit": "limit",
    "weights": "w",
    "freeze": "freeze",
    "image_size": "px",
    "precision": "",
}
FINGERPRINTS = {  # of known images and labels
    "06b0d1f124c4e5fa": "MNIST",
    "ca3ab2a37f845e1b": "Fashion-MNIST",
    "80387ddb9a0edf3f": "CIFAR-10",
    "8094c640e96e98aa": "Hymenoptera",  # scaled to a shorter side of 256 pixels
}
FLAVOURS = {  # of the published Spinal heads: dropout, batch norm, activation
    "R": (0.0, False, nn.ReLU),
    "DBR": (0.5, True, nn.ReLU),
    "LIN": (0.0, False, nn.Identity),
    "LEAKY": (0.0, False, nn.LeakyReLU),
}
NUMBERS = {  # arguments of the command line: lowest value, default, help
    "layers": (1, None, "hidden layers of the Spinal head; default: as published"),
    "width": (1, None, "neurons in each of them; default: as published"),
    "epochs": (1, None, "default: as published; stages share them in proportion"),
    "batch-size": (2, None, "of all processes together; default: as published"),
    "image-size": (16, None, "a quick try with smaller images; default: as published"),
    "limit": (4, None, "use only LIMIT images of each part: a quick try"),
    "seed": (0, 0, "of the first run; default: 0"),
    "runs": (1, 1, "with seeds SEED, SEED + 1, ...; default: 1"),
    "workers": (0, min(8, os.cpu_count() or 1), "processes that make views; default: %(default)s"),
}
SWITCHES = {
    "freeze": "train the head alone",
    "no-download": "use the data and weights that are there",
    "fetch-only": "get and check data and weights, train nothing",
    "save-weights": "keep the network in results/weights",
    "quiet": "print results only",
    "overwrite": "delete what earlier runs left, and start anew",
}


def recipe_of(network: str, head: str, protocol: str, **changes) -> Recipe:
    """The recipe of a network and a head under this protocol, with those changes that are set."""
    recipe = replace(RECIPES[network, head], protocol=protocol)
    if protocol != "published":
        recipe = PROTOCOLS[protocol](recipe)
    return replace(recipe, **{key: x for key, x in changes.items() if x is not None})


def head_name(recipe: Recipe) -> str:
    """fc, spinal4x20, ..."""
    return f"spinal{recipe.layers}x{recipe.width}" if recipe.head == "spinal" else "fc"


class Process(NamedTuple):
    """This process: the only one, or one of those that torchrun starts to train together."""

    device: torch.device
    rank: int  # 0: this one prints and writes files
    count: int  # of the processes that train together
    workers: int  # processes that make views for this one
    quiet: bool  # it prints no progress


def seed_of(*purpose) -> int:
    """A seed made of its purpose, such as (0, "data", 5), so that no random state is saved."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def shuffled(count: int, *purpose) -> Tensor:
    """The numbers from 0 to count - 1 in an order that depends on the purpose alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(*purpose)))


def open_image(image: numpy.ndarray | str) -> Image.Image:
    """An RGB image from pixels or a file. Raises ValueError if the file cannot be used."""
    if not isinstance(image, str):
        return Image.fromarray(image).convert("RGB")
    try:
        with Image.open(image) as file:
            if file.mode.startswith(("I", "F")):  # Pillow would turn most of it white
                raise ValueError(f"it has more than 8 bits a channel (mode {file.mode})")
            return file.convert("RGB")
    except Exception as error:  # PIL raises exceptions of many kinds
        raise ValueError(f"{image} cannot be used: {error}") from error


class Views(Dataset):
    """Views (3, S, S) uint8 of images (N, H, W) or (N, H, W, 3) uint8 or files, labels, indexes.

    steps: names and arguments of torchvision's transforms; scale: of the sizes among them
    What is drawn for image k depends on `draws` and k alone.
    """

    def __init__(self, images: numpy.ndarray, labels: numpy.ndarray, steps: list, scale: float):
        self.images = images
        self.labels = labels
        self.draws = ()
        made = []
        for name, *values in steps:
            if name.endswith(("Resize", "Crop")):
                values[0] = numpy.rint(numpy.multiply(values[0], scale)).astype(int).tolist()
            made.append(getattr(transforms, name)(*values))
        self.view = transforms.Compose([*made, transforms.PILToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, k: int) -> tuple[Tensor, int, int]:
        image = open_image(self.images[k])
        with torch.random.fork_rng(devices=[]):
            # This one is of the CPU only; that of the GPU is for dropout.
            torch.default_generator.manual_seed(seed_of(*self.draws, k))
            return self.view(image), int(self.labels[k]), k


def identify(parts: dict, proved: bool, classes: int, quiet: bool) -> dict:
    """Facts for the log. Raises ValueError if an image is damaged, or the data are others."""
    digest = hashlib.sha256()
    official = True
    for name, (images, labels) in parts.items():
        counts = numpy.bincount(labels, minlength=classes).tolist()
        lacking = 0 in counts and name not in DEALT
        if lacking or len(counts) > classes or len(images) != len(labels):
            raise ValueError(
                f"{name}: {len(images)} images, {len(labels)} labels "
                f"of {len(numpy.unique(labels))} classes, not {classes}"
            )
        official = official and IMAGES[name] in (None, len(labels), counts)
        pixels = images.dtype == numpy.uint8
        if pixels:
            digest.update(images.tobytes() + labels.astype("u1").tobytes())
            continue
        bar = tqdm(images, f"checking {name}", leave=False, disable=quiet or None)
        for file, label in zip(bar, labels, strict=True):
            open_image(file)
            content = Path(file).read_bytes()
            place = "/".join([name, *Path(file).parts[-2:]])
            digest.update(f"{place}\0{label}\0{len(content)}\0".encode() + content)
    sha256 = digest.hexdigest()[:16]
    dataset = FINGERPRINTS.get(sha256)
    if dataset not in (None, DATASET):
        raise ValueError(f"these are the images and labels of {dataset}")
    verified = official and (proved or dataset == DATASET)
    if official and pixels and not verified:
        raise ValueError("its images or labels are not the official ones")
    return {"sha256": sha256, "official": official, "verified": verified, "heldout": 0}


def chosen(part: tuple, rows: Tensor) -> tuple:
    """Images and labels of these rows, in the order that they have in the part."""
    images, labels = part
    rows = rows.sort().values.numpy()
    return images[rows], labels[rows]


# <<< shared: transfer_script


def split(parts: dict, recipe: Recipe) -> dict:
    """Takes the parts that the folder lacks from the training images of each class."""
    for name, share in {"test": recipe.tested, "heldout": recipe.heldout}.items():
        if name in parts:
            continue
        train = parts["train"]
        labels = torch.from_numpy(train[1])
        rows = shuffled(len(labels), name)
        rows = rows[labels[rows].argsort(stable=True)]  # class after class
        taken = torch.arange(len(rows)) % share == 0
        parts[name] = chosen(train, rows[taken])
        parts["train"] = chosen(train, rows[~taken])
    if recipe.limit:
        for name, part in parts.items():
            parts[name] = chosen(part, shuffled(len(part[1]), "limit", name)[: recipe.limit])
    return parts


# >>> shared: transfer_load (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
def load_data(folder: Path, recipe: Recipe, download: bool, quiet: bool) -> tuple[dict, dict]:
    """The parts of the data (train, test, perhaps heldout), checked and split, and facts for a log.

    Raises ValueError if they cannot be had or are wrong.
    """
    socket.setdefaulttimeout(60)  # seconds without a byte, after which a download has failed
    try:
        parts, proved = read_parts(folder, download)
        facts = identify(parts, proved, recipe.classes, quiet)
    except Exception as error:  # torchvision raises exceptions of many kinds
        reason = str(error).partition(" You can use download=True")[0] or repr(error)
        raise ValueError(f"{DATASET} cannot be had in {folder} ({reason}): {WHERE}") from error
    data = {}
    row = recipe_of(recipe.network, recipe.head, recipe.protocol)
    scale = recipe.image_size / row.image_size
    for name, part in split(parts, recipe).items():
        steps = recipe.augmentation if name == "train" else recipe.evaluation
        data[name] = Views(*part, steps, scale)
        facts[name] = len(part[1])
    return data, facts


class Output(nn.Linear):
    """An output layer that computes in fp32: in bf16 two classes would often be equal."""

    def forward(self, x: Tensor) -> Tensor:
        # meta: without numbers, to count operations
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            return super().forward(x.float())


def load_trunk(network: str, pretrained: bool, download: bool) -> nn.Module:
    """torchvision's network, on the CPU. Raises ValueError if its weights cannot be had."""
    if not pretrained:
        return torchvision.models.get_model(network)
    weights = torchvision.models.get_model_weights(network).IMAGENET1K_V1  # as published
    file = Path(f"{torch.hub.get_dir()}/checkpoints/{Path(weights.url).name}")
    try:
        if not download and not file.exists():
            raise ValueError("they are not there, and must not be downloaded now")
        return torchvision.models.get_model(network, weights=weights)
    except Exception as error:  # a download fails in many ways
        raise ValueError(
            f"the ImageNet weights of {network} cannot be had ({error}): check the "
            f"network, or put {weights.url} into {file.parent}, or take --weights none"
        ) from error


# <<< shared: transfer_load


def build_head(recipe: Recipe, features: int) -> nn.Module:
    """(N, features) -> logits (N, classes)"""
    if recipe.head == "fc":
        return Output(features, recipe.classes)
    hidden = SpinalLayers(features, recipe.layers, recipe.width)
    return nn.Sequential(hidden, Output(recipe.layers * recipe.width, recipe.classes))


def network_of(recipe: Recipe, download: bool) -> nn.Module:
    """Trunk and new head, on the CPU. `place` is the name of the part that makes the outputs."""
    # The trunk comes first, so that it gets the same random weights with either head.
    network = load_trunk(recipe.network, recipe.weights != "none", download)
    network.place = "classifier" if hasattr(network, "classifier") else "fc"
    features = linear_layers(network)[0].in_features
    parts = []  # what comes before the first linear layer: dropout, or a norm
    for part in getattr(network, network.place).children():
        if isinstance(part, nn.Linear):
            break
        parts.append(part)
    setattr(network, network.place, nn.Sequential(*parts, build_head(recipe, features)))
    return network


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    """Those of the part that makes the outputs."""
    modules = getattr(network, network.place).modules()
    return [module for module in modules if isinstance(module, nn.Linear)]


# >>> shared: transfer_run (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
class Trainer:
    """Trains and tests one network, together with the other processes if there are some.

    Each process has its share of every batch, and a step is that of the whole batch.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, process: Process):
        self.recipe = recipe
        self.process = process
        if recipe.freeze:
            for name, part in network.named_children():
                if name != network.place:
                    part.requires_grad_(False)
        network = network.to(process.device, memory_format=torch.channels_last)
        if process.count > 1 and process.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network
        self.model = DistributedDataParallel(network) if process.count > 1 else network
        moments = torch.tensor([recipe.mean, recipe.std], device=process.device)
        self.mean, self.std = moments.view(2, -1, 1, 1)
        learning = [x for x in network.parameters() if x.requires_grad]
        # Each epoch sets its rate.
        self.optimizer = torch.optim.SGD(learning, momentum=recipe.momentum)

    def epoch(self, part: Views, order: Tensor, rate: float, title: str) -> float:
        """Trains on all images in this order. Returns the mean loss. title: of the progress bar"""
        self.optimizer.param_groups[0]["lr"] = rate
        batches = list(order.split(self.recipe.batch_size))
        if len(batches[-1]) < 2 * self.process.count:  # too small for batch norm: left out (Q14)
            batches.pop()
        return self.sweep(self.model.train(), part, batches, title)[0]

    def evaluate(self, part: Views, title: str) -> tuple[float, float, Tensor]:
        """Mean loss, accuracy in per cent, and 1 or 0 for each image: is it classified rightly?"""
        batches = torch.arange(len(part)).split(2 * self.recipe.batch_size)
        loss, right = self.sweep(self.network.eval(), part, batches, title)
        return loss, 100 * (right.sum() / len(part)).item(), right

    def sweep(
        self, model: nn.Module, part: Views, batches: list[Tensor], title: str
    ) -> tuple[float, Tensor]:
        """Mean loss, and 1 or 0 for each image. The model learns if it is in training mode."""
        device, rank, count, workers, quiet = self.process
        shares = [batch[rank::count].tolist() for batch in batches if len(batch) > rank]
        loader = DataLoader(
            part, batch_sampler=shares, num_workers=workers, pin_memory=device.type == "cuda"
        )
        # disable=None: no bar unless in a terminal
        bar = tqdm(loader, title, leave=False, disable=quiet or None)
        total = torch.zeros(1, device=device)  # loss
        right = torch.zeros(len(part), device=device)  # 1: the network found its class
        for batch, tensors in zip(batches, bar, strict=False):
            images, labels, rows = [x.to(device, non_blocking=True) for x in tensors]
            images = images.to(torch.float32, memory_format=torch.channels_last)
            images = images.div_(255).sub_(self.mean).div_(self.std)
            with (
                torch.set_grad_enabled(model.training),
                torch.autocast(device.type, torch.bfloat16, self.recipe.precision == "bf16"),
            ):
                outputs = model(images)
                loss = F.cross_entropy(outputs, labels, reduction="sum")
            if model.training:
                self.optimizer.zero_grad()
                # DistributedDataParallel takes the mean of the processes' gradients.
                (loss * (count / len(batch))).backward()
                self.optimizer.step()
            total += loss.detach()
            right[rows] = (outputs.argmax(1) == labels).float()
        if count > 1:
            distributed.all_reduce(total)
            distributed.all_reduce(right)
        return (total / sum(map(len, batches))).item(), right


def rate_of(recipe: Recipe, epoch: int) -> tuple[float, bool]:
    """The rate of an epoch (the first one is 1), and whether a stage begins with it."""
    begin = 0
    for factor, part in recipe.stages:
        end = round(part * recipe.epochs)
        if begin < epoch <= end:
            k = epoch - begin - 1  # epochs of this stage before
            rate = recipe.learning_rate * factor * 0.1 ** (k // 7)
        begin = end
    return rate, k == 0


def provenance(process: Process) -> dict:
    """The program and the machine: what else can change the last digits of a result."""
    device = process.device
    cpuinfo = Path("/proc/cpuinfo")  # on Linux
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    models = re.findall("model name.*: (.*)", text) or [platform.machine()]
    script = Path(__file__).read_bytes().replace(b"\r\n", b"\n")
    facts = {
        "device": device.type,
        "device_name": f"{models[0]} ({torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
        "processes": process.count,
        "script_sha256": hashlib.sha256(script).hexdigest()[:16],
        "versions": {"torch": str(torch.__version__), "torchvision": torchvision.__version__},
    }
    if device.type == "cuda":
        driver = Path("/proc/driver/nvidia/version")
        facts |= {
            "device_name": torch.cuda.get_device_name(),
            "capability": list(torch.cuda.get_device_capability()),
            "driver": driver.read_text().partition("\n")[0] if driver.exists() else None,
            "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
            "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        }
        facts["versions"]["cudnn"] = torch.backends.cudnn.version()
    return facts


def write_log(path: Path, lines: list[dict]) -> None:
    """Writes JSON lines. Numbers get six digits, or null if they are not finite."""
    with path.open("w") as file:
        for line in lines:
            for key, x in line.items():
                if isinstance(x, float):
                    line = line | {key: float(f"{x:.6g}") if math.isfinite(x) else None}
            file.write(json.dumps(line) + "\n")


def replace_file(path: Path, temporary: Path) -> None:
    """Gives a file its final name, once its content is safe on the disk."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save(path: Path, tensors: dict) -> None:
    """Writes tensors in one go: the process may be killed at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(tensors, temporary)
    replace_file(path, temporary)


def compare(old: dict, new: dict) -> bool:
    """Are these first lines of two logs by the same text of the script?

    Raises ValueError if settings or data differ.
    """
    names = []
    for section in ("settings", "data"):
        for key, value in new[section].items():
            if old[section].get(key) != value and key != "verified":
                names.append(key)
    if names:
        raise ValueError(f"it has other values of {', '.join(names)}")
    return old["provenance"]["script_sha256"] == new["provenance"]["script_sha256"]


@dataclass
class Run:
    """One network that is trained with one seed."""

    recipe: Recipe
    seed: int
    data: dict[str, Views]
    facts: dict  # about the data
    process: Process
    args: argparse.Namespace

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.watched = "heldout" if "heldout" in self.data else "test"
        row = recipe_of(recipe.network, recipe.head, recipe.protocol)
        departures = [key for key in MARKS if getattr(recipe, key) != getattr(row, key)]
        label = f"{recipe.network}-{head_name(recipe)}"
        parts = [label, recipe.protocol]
        # A recipe of its own name is no row of the paper's tables, and has numbers of its own.
        named = [] if recipe.protocol in ("published", "corrected") else ["protocol"]
        for key in departures:
            parts.append(f"{MARKS[key]}{getattr(recipe, key)}".removesuffix("True"))
        self.paper = {}  # published numbers, if this run can be compared with them
        if not self.facts["official"]:
            parts.append(f"data{self.facts['sha256'][:8]}")
        elif not departures:
            self.paper = PAPER.get(f"{label}-{recipe.protocol}" if named else label, {})
        self.name = "-".join([*parts, f"s{self.seed}"])
        results = self.args.results_dir.expanduser()
        self.log = results / f"logs/{SCRIPT}/{self.name}.jsonl"
        self.unfinished_log = self.log.with_suffix(".jsonl.part")
        self.checkpoint = self.log.with_suffix(".pt")
        self.weights = results / f"weights/{SCRIPT}/{self.name}.pt"
        self.start = {
            "event": "start",
            "schema": 3,
            "script": SCRIPT,
            "run": self.name,
            "seed": self.seed,
            "settings": {"dataset": DATASET, **asdict(recipe)},
            "departures": sorted(departures + named),
            "data": self.facts,
            "provenance": provenance(self.process),
        }

    def perform(self) -> float:
        """Trains what is left to train, and prints the result. Returns the accuracy in per cent."""
        if self.args.overwrite:
            for file in (self.log, self.checkpoint, self.weights):
                file.unlink(missing_ok=True)
        if not self.log.exists():
            self.prepare()
        note = self.read_earlier()
        if not note:
            while self.state["epoch"] < self.recipe.epochs:
                self.train_epoch()
            self.finish()
        if self.process.rank == 0:
            self.print_result(note)
        return self.end["selected_test_accuracy_pct"]

    def read_earlier(self) -> str:
        """Reads what an earlier run left. Returns a note if it was finished.

        Raises ValueError if its log or checkpoint is damaged, or one of another run.
        """
        try:
            if self.log.exists():
                return self.read_end()
            if self.checkpoint.exists():
                self.resume()
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # damaged files raise exceptions of many kinds
            reason = error if type(error) is ValueError else "it is damaged"
            raise ValueError(
                f"the log or checkpoint of {self.name} in {self.log.parent} cannot be used: "
                f"{reason}; --overwrite starts anew"
            ) from error
        return ""

    def read_end(self) -> str:
        """Reads the finished log. Returns a note about it."""
        lines = self.log.read_text().splitlines()
        first, self.end = json.loads(lines[0]), json.loads(lines[-1])
        note = f"already finished {self.end['ended']} on {first['provenance']['device_name']}"
        if not compare(first, self.start):
            note += " by another version of this script"
        if self.args.save_weights and not self.weights.exists():
            raise ValueError("its weights were not saved")
        return f"{note} (--overwrite runs it again): "

    def prepare(self) -> None:
        """Builds the network and the state before the first epoch."""
        torch.manual_seed(seed_of(self.seed, "weights"))
        network = network_of(self.recipe, not self.args.no_download)
        self.start["parameters"] = sum(x.numel() for x in network.parameters())
        self.start["fc_multiplications"] = sum(x.weight.numel() for x in linear_layers(network))
        self.trainer = Trainer(network, self.recipe, self.process)
        # lines: of the log; epoch: the last finished one; best: accuracy
        self.state = {"lines": [self.start], "epoch": 0, "best": -1.0, "seconds": 0.0}

    def resume(self) -> None:
        """Goes on from the checkpoint."""
        saved = torch.load(self.checkpoint, self.process.device, weights_only=True)
        if not compare(saved["state"]["lines"][0], self.start):
            raise ValueError("it was made by another version of this script")
        self.trainer.network.load_state_dict(saved["network"])
        self.trainer.optimizer.load_state_dict(saved["optimizer"])
        self.state = saved["state"]
        epoch = self.state["epoch"]
        line = {"event": "resume", "epoch": epoch, "provenance": self.start["provenance"]}
        self.state["lines"].append(line)
        if self.process.rank == 0:
            print(f"{self.name} goes on after epoch {epoch}", file=sys.stderr)

    def train_epoch(self) -> None:
        """Trains, tests and saves one epoch."""
        began = time.monotonic()
        state, trainer, rank = self.state, self.trainer, self.process.rank
        epoch = state["epoch"] + 1
        rate, new_stage = rate_of(self.recipe, epoch)
        if new_stage and epoch > 1:
            trainer.network.load_state_dict(state["best_weights"])
            trainer.optimizer.state.clear()  # the momentum of earlier steps
            if self.recipe.best_of_stage:
                state["best"] = -1.0
        title = f"{head_name(self.recipe)} epoch {epoch}/{self.recipe.epochs}"
        # The head is not in these seeds: both heads get the same views in the same order.
        self.data["train"].draws = (self.seed, "view", epoch)
        order = shuffled(len(self.data["train"]), self.seed, "data", epoch)
        torch.manual_seed(seed_of(self.seed, "dropout", epoch) + rank)
        train_loss = trainer.epoch(self.data["train"], order, rate, title)
        loss, accuracy, right = trainer.evaluate(self.data[self.watched], f"{title}, test")
        if accuracy > state["best"]:
            state |= {"best": accuracy, "best_epoch": epoch, "right": right}
            state["best_weights"] = copy.deepcopy(trainer.network.state_dict())
        seconds = time.monotonic() - began
        state["seconds"] += seconds
        state |= {"epoch": epoch, "last": (train_loss, accuracy)}
        line = {"event": "epoch", "epoch": epoch, "learning_rate": rate, "train_loss": train_loss}
        line |= {f"{self.watched}_loss": loss, f"{self.watched}_accuracy_pct": accuracy}
        state["lines"].append(line | {"seconds": seconds})
        if rank == 0:
            saved = {"state": state, "network": trainer.network.state_dict()}
            save(self.checkpoint, saved | {"optimizer": trainer.optimizer.state_dict()})
            write_log(self.unfinished_log, state["lines"])
        if not self.process.quiet:
            left = seconds * (self.recipe.epochs - epoch) / 60
            print(
                f"{title}: loss {train_loss:.4f}, {self.watched} {accuracy:.2f} %, "
                f"{seconds:.0f} s, {left:.0f} min left",
                flush=True,
            )

    def finish(self) -> None:
        """Tests the epoch that is reported, and writes the log with its last line."""
        state, trainer = self.state, self.trainer
        train_loss, last = state["last"]
        selected, right = state["best"], state["right"]
        if self.watched == "heldout":  # the test images have not been used yet
            last = trainer.evaluate(self.data["test"], "test of the last epoch")[1]
            trainer.network.load_state_dict(state["best_weights"])
            _, selected, right = trainer.evaluate(self.data["test"], "test of the selected epoch")
        bits = numpy.packbits(right.bool().cpu().numpy())
        self.end = {
            "event": "end",
            "epochs": state["epoch"],
            "best_epoch": state["best_epoch"],
            "selected_epoch": state["best_epoch"],
            "outcome": "finished" if math.isfinite(train_loss) else "diverged",
            f"best_{self.watched}_accuracy_pct": state["best"],
            "last_test_accuracy_pct": last,
            "selected_test_accuracy_pct": selected,
            "test_correct": base64.b64encode(bits).decode(),
            "seconds": state["seconds"],
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if self.process.rank > 0:
            return
        write_log(self.unfinished_log, [*state["lines"], self.end])
        if self.args.save_weights:
            save(self.weights, state["best_weights"])
        replace_file(self.log, self.unfinished_log)
        self.checkpoint.unlink(missing_ok=True)

    def print_result(self, note: str) -> None:
        """Prints the accuracy beside the paper's. note: what to say before it"""
        text = f"{note}{DATASET} {self.name}: {self.end['selected_test_accuracy_pct']:.2f} %"
        if self.paper:
            numbers = ", ".join(f"{key} {x:.2f}" for key, x in self.paper.items())
            text += f" (paper, as published: {numbers})"
        if self.recipe.head_ignored:
            text += "; its new head is never called, both heads give this (Q1)"
        if not self.facts["official"]:
            text += "; not the official images"
        elif not self.facts["verified"]:
            text += "; images not verified"
        weights = f". Weights: {self.weights}" if self.args.save_weights else ""
        print(f"{text}. Log: {self.log}{weights}", flush=True)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. A mistake ends the process with status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--network", choices=NETWORKS, default=NETWORKS[0], help="default: %(default)s")
    add("--head", choices=[*HEADS, "both"], default="both", help="default: both")
    add(
        "--protocol",
        "--recipe",
        choices=["published", *PROTOCOLS],
        default="published",
        help="see above; default: %(default)s",
    )
    add("--weights", choices=["imagenet1k_v1", "none"], help="none: start from random weights")
    add(
        "--precision",
        choices=["fp32", "ieee", "bf16"],
        default="fp32",
        help="ieee: fp32 without TF32; default: %(default)s",
    )
    add("--lr", type=float, dest="learning_rate", help="of the first epoch; default: as published")
    for name, (_, default, text) in NUMBERS.items():
        add(f"--{name}", type=int, default=default, help=text)
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; default: the best there is")
    add("--data-dir", type=Path, default="data", help="default: data")
    add("--results-dir", type=Path, default="results", help="default: results")
    for name, text in SWITCHES.items():
        add(f"--{name}", action="store_true", help=text)
    args = parser.parse_args(argv)
    rate = args.learning_rate
    if rate is not None and not 0 < rate < 10**6:
        parser.error("--lr must be more than 0")
    for name, (least, _, _) in NUMBERS.items():
        value = getattr(args, name.replace("-", "_"))
        if value is not None and not least <= value < 10**6:
            parser.error(f"--{name} must be from {least} to 999999")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", args.device):
        parser.error("--device must be auto, cpu, cuda, mps, or one of several GPUs: cuda:1")
    if args.head == "fc" and (args.layers or args.width):
        parser.error("--layers and --width belong to the Spinal head: choose --head spinal or both")
    return args


def this_process(args: argparse.Namespace) -> Process:
    """This process, with the device that the command line names, ready for use."""
    rank, count = 0, 1
    name = args.device
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else name
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = torch.zeros(1, device=name).device  # raises an exception if there is none
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
        if args.precision == "ieee":  # otherwise PyTorch's own choices
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
    if os.environ.get("WORLD_SIZE", "1") != "1":  # torchrun has set it
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        rank, count = distributed.get_rank(), distributed.get_world_size()
    return Process(device, rank, count, args.workers, args.quiet or rank > 0)


def choose_recipes(args: argparse.Namespace, process: Process) -> list[Recipe]:
    """What the command line asks for: the recipe of each head."""
    recipes = []
    for head in HEADS if args.head == "both" else [args.head]:
        changes = {key: x for key, x in vars(args).items() if key in MARKS}
        if head == "spinal":
            changes |= {"layers": args.layers, "width": args.width}
        recipe = recipe_of(args.network, head, args.protocol, **changes)
        if recipe.batch_size < 2 * process.count:
            raise ValueError(f"{process.count} processes need a larger batch")
        recipes.append(recipe)
    return recipes


def announce(
    args: argparse.Namespace, recipes: list[Recipe], images: int, process: Process
) -> None:
    """Prints what will be trained, on what and where."""
    recipe, device = recipes[0], process.device
    heads = " and ".join(head_name(recipe) for recipe in recipes)
    print(
        f"{DATASET}, {args.network}, {args.protocol}: {heads}, {args.runs} run(s) of each,\n"
        f"{recipe.epochs} epochs of {images:,} images of {recipe.image_size} pixels "
        f"on {device} ({torch.get_num_threads()} threads)"
    )
    if device.type == "cpu" and not args.limit:
        print("This takes days or weeks on a CPU: use a GPU, or try --limit 200 --epochs 2.")


def print_difference(accuracies: list[float], papers: list[dict]) -> None:
    """Prints by how much the Spinal head is ahead. The lists are of FC, Spinal, FC, Spinal, ..."""
    seeds = len(accuracies) // 2
    gain = round((sum(accuracies[1::2]) - sum(accuracies[0::2])) / seeds, 2) + 0.0  # no -0.00
    fc, spinal = [numbers.get("average") for numbers in papers[:2]]
    paper = f"; paper: {spinal - fc:+.2f}" if fc and spinal else ""
    print(f"Spinal - FC: {gain:+.2f} points (mean; number of seeds: {seeds}{paper})")


def reproduce(args: argparse.Namespace) -> None:
    """Does what the command line asks for."""
    process = this_process(args)
    recipes = choose_recipes(args, process)
    # Several processes would write the same files.
    download = not args.no_download and process.count == 1
    data, facts = load_data(args.data_dir.expanduser(), recipes[0], download, process.quiet)
    if args.fetch_only:
        load_trunk(args.network, recipes[0].weights != "none", download)
        return
    if not process.quiet:
        announce(args, recipes, facts["train"], process)
    accuracies, papers = [], []
    for seed in range(args.seed, args.seed + args.runs):
        for recipe in recipes:
            run = Run(recipe, seed, data, facts, process, args)
            accuracies.append(run.perform())
            papers.append(run.paper)
    if len(recipes) == 2 and process.rank == 0:
        print_difference(accuracies, papers)
    if process.count > 1:
        distributed.destroy_process_group()


def explain(error: Exception) -> str:
    """What went wrong, in one line."""
    lines = (str(error) or repr(error)).splitlines()
    line = lines[-1] if "Traceback" in str(error) else lines[0]  # of a process that makes views
    if re.search("bus error|shared memory|/torch_", line, re.IGNORECASE):
        return f"too little shared memory (/dev/shm): choose fewer --workers, or none: 0 ({line})"
    return line


# <<< shared: transfer_run


# Images of a known set are welcome, too.
FINGERPRINTS.clear()


def adapt(folder: Path, network: str) -> None:
    """Makes the recipes of a network for the classes in a folder.

    Raises ValueError or OSError if one of them does not fit.
    """
    models = torchvision.models
    if network.startswith(UNFIT) or network not in models.list_models(models):
        raise ValueError(
            f"{network} is no network of torchvision whose `fc` or `classifier` fits (see --help)"
        )
    names = torchvision.datasets.folder.find_classes(places_of(folder)["train"])[0]
    if len(names) < 2:
        raise ValueError(f"{folder} has one class only, {names[0]}: {WHERE}")
    fc = replace(FC, network=network, classes=len(names), class_names=names)
    RECIPES[network, "fc"] = fc
    RECIPES[network, "spinal"] = replace(
        fc, head="spinal", layers=4, width=max(20, len(names)), flavour="R"
    )


def load_kept(weights: Path, log: Path) -> tuple[nn.Module, FolderRecipe]:
    """A saved network and its recipe. Raises ValueError if a file is damaged."""
    try:
        settings = json.loads(log.read_text().partition("\n")[0])["settings"]
        del settings["dataset"]
        recipe = FolderRecipe(**settings | {"weights": "none"})
        network = network_of(recipe, False).eval()
        network.load_state_dict(torch.load(weights, "cpu", weights_only=True))
        return network, recipe
    except Exception as error:  # damaged files raise exceptions of many kinds
        raise ValueError(f"{weights} or {log} cannot be used") from error


def classify(image: str, args: argparse.Namespace) -> None:
    """Prints the most probable classes of an image, by all saved networks of this name and seed."""
    results = args.results_dir.expanduser()
    folder = results / "weights" / SCRIPT
    files = sorted(folder.glob(f"{args.network}-*-s{args.seed}.pt"))
    if not files:
        raise ValueError(f"no weights of {args.network} in {folder}: train with --save-weights")
    for file in files:
        network, recipe = load_kept(file, results / f"logs/{SCRIPT}/{file.stem}.jsonl")
        views = Views([image], [0], recipe.evaluation, recipe.image_size / FC.image_size)
        view = transforms.functional.normalize(views[0][0] / 255, recipe.mean, recipe.std)
        with torch.no_grad():
            found = network(view[None]).softmax(1)[0]
        best = [
            f"{recipe.class_names[k]} {100 * found[k]:.2f} %"
            for k in found.argsort(descending=True)
        ]
        print(f"{file.stem}: {', '.join(best[:5])}")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 a mistake of the user, 130 stopped by Ctrl-C."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--images", "--classify", "--network"):
        parser.add_argument(name)
    own, others = parser.parse_known_args(argv)
    NETWORKS[:] = [own.network or "resnet18"]
    args = parse_arguments(others)
    if not own.images and not own.classify:
        parser.error("--images FOLDER is missing")
    args.protocol = "corrected"
    try:
        if own.classify:
            classify(own.classify, args)
        else:
            args.data_dir = Path(own.images)
            adapt(args.data_dir.expanduser(), args.network)
            reproduce(args)
    except KeyboardInterrupt:
        print("stopped: the same command, without --overwrite, goes on", file=sys.stderr)
        return 130
    except Exception as error:  # torchvision and damaged files raise exceptions of many kinds
        print("error:", explain(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
