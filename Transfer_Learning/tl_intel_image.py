# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "pillow>=10.0", "tqdm>=4.66"]
# ///
"""Intel Image Classification with ImageNet weights: FC head against SpinalNet head. Named in the text of arXiv 2007.03347.

| network          | head            | paper's text | command |
|------------------|-----------------|-------------:|---------|
| wide_resnet101_2 | FC, output only |            - | python tl_intel_image.py --head fc |
| wide_resnet101_2 | Spinal 4 x 20   |        93.77 | python tl_intel_image.py --head spinal |

No code was released for this set: head, stages (0.001 for 20 epochs, batches of 24) and views (as for Caltech-101) are a guess
from the other sets; what `published` means here is their quirks. Official folders: seg_train (14,034 images) and seg_test
(3,000) of 6 classes; as for the other two-part sets, `published` chooses the epoch on the test images.

`--protocol published` (default) does what the released script did; `--protocol corrected` changes exactly this:
  Q7       the epoch is chosen on a tenth of the training images, held out with a fixed seed (published: on the test set, a
           maximum over epochs); the test set is read twice, at the chosen and at the last epoch
  Q10      inputs are standardised by ImageNet's mean and deviation (published: CIFAR-100's)
  Q14      a last batch of one image is left out (published: batch norm of a DBR head stops on it)

`--head both` (default) trains first the FC, then the Spinal head; both see the same views of the same images in the same
order. `torchrun --nproc-per-node=2 tl_intel_image.py` trains on two devices of one machine: a batch is cut in two, its size
stays as published, and a step is that of one process to rounding, dropout masks aside (on CPUs batch norm sees each part
alone, which is logged as a departure, `batch_norm`). `--accumulate 4` passes a batch through the device in four parts (also
logged so, where there is batch norm). CUDA computes in bf16 with fp32 weights, which is not counted as a departure.

Data are expected in, or go to, data/; decoded, the images take 1.2 GB of memory, and are decoded anew in each epoch where that
does not fit. One log a run goes to results/logs/tl_intel_image/, checkpoints to results/checkpoints/tl_intel_image/ until the
run is finished. An interrupted run goes on where it stopped when the command is repeated; a finished one is not run again. On
one CPU set-up (processor, library versions, number of threads) a seed gives the same log bit by bit, whatever --workers is;
elsewhere it is another draw. Q-numbers: the quirks of the released scripts, listed in this project.
"""
from __future__ import annotations

# >>> shared: imports (origin MNIST/mnist.py; edit there, then: make sync)
import argparse
import contextlib
import dataclasses
import errno
import gzip
import hashlib
import http.client
import io
import json
import math
import os
import pickle
import platform
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

try:
    import numpy
    import torch
    import torchvision
    from torch import Tensor, distributed, nn
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel
    from tqdm import tqdm
except ImportError as missing:
    sys.exit(f"error: {missing.name} is missing: pip install torch torchvision numpy tqdm, or start this file with uv run")
# <<< shared: imports

import mmap
import multiprocessing
from collections.abc import Iterator

try:
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset, Sampler
    from torchvision import transforms
except ImportError as missing:
    sys.exit(f"error: {missing.name} is missing: pip install torch torchvision pillow, or start this file with uv run")


# >>> shared: basics (origin MNIST/mnist.py; edit there, then: make sync)
class UserError(Exception):
    """Something that the person at the keyboard can mend; the text is one sentence that says how. Exit status 2."""


def seed_of(*purpose: object) -> int:
    """A seed that is a pure function of its purpose: nothing random has to be stored in order to resume."""
    return int.from_bytes(hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest(), "big") >> 1


@contextlib.contextmanager
def one_at_a_time(folder: Path):
    """Holds a lock in a folder that is downloaded to, so that two processes never write the same files."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # Windows, a folder that is read-only: no lock
            import fcntl
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".lock", "a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"note: waiting for another process that reads or fetches data in {folder}", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
# <<< shared: basics


# >>> shared: transfer_recipe (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one network is trained on this data set: the published values."""

    stages: tuple[tuple[float, int], ...]  # (first rate, epochs): a new optimiser each, from the best weights of the last one
    batch_size: int
    spinal: tuple[int, int, str]  # hidden layers, width, flavour (FLAVOURS) of the Spinal head
    fc: tuple[int, int, float] = (0, 0, 0.0)  # hidden layers, width, dropout of the default head; no layers: output layer alone
    corrected_flavour: str | None = None  # of the Spinal head under `corrected`; None: the same


CIFAR100_NORM = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
IMAGENET_NORM = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BACKBONES = ("wide_resnet101_2", "vgg19_bn", "resnet18", "resnext50_32x4d", "alexnet")
# <<< shared: transfer_recipe


# ---- Facts of this experiment: Intel Image -----------------------------------------------------------------------------------
SCRIPT, DATASET, CLASSES = "tl_intel_image", "Intel Image", 6
PARTS = {
    "train": ("intel-image/seg_train/seg_train", "intel-image/seg_train"),
    "test": ("intel-image/seg_test/seg_test", "intel-image/seg_test"),
}
IMAGES = {"train": 14_034, "test": 3_000}  # of the official data; None: not known
FINGERPRINT = None  # of the official data; None: not known
NOT_OFFICIAL: tuple[str, ...] = ()
WHERE = ("unpack kaggle.com/datasets/puneet6060/intel-image-classification (363 MB) there, so that there are "
         "intel-image/seg_train/seg_train/CLASS/*.jpg and intel-image/seg_test/seg_test/CLASS/*.jpg")
IMAGE_SIZE, NORM = 224, CIFAR100_NORM
TRAIN_VIEW = (("Resize", (230, 230)), ("RandomRotation", 15), ("RandomCrop", 224), ("RandomHorizontalFlip",))
TEST_VIEW = (("Resize", (224, 224)),)
WRN = Recipe(((0.001, 20),), 24, spinal=(4, 20, "R"))
RECIPES = {
    "wide_resnet101_2": WRN, "vgg19_bn": dataclasses.replace(WRN, fc=(2, 4096, 0.5)),
    "resnet18": WRN, "resnext50_32x4d": WRN, "alexnet": WRN,
}
HEAD_IGNORED = ()  # Q1: networks whose published head is never called
PAPER: dict = {}  # in no table; the text has 93.77 % for a Spinal head on wide_resnet101_2


# ---- Data ------------------------------------------------------------------------------------------------------------------
# >>> shared: transfer_folders (origin Transfer_Learning/tl_hymenoptera.py; edit there, then: make sync)
def list_images(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """The classes (subfolders in alphabetical order, as published) and the files with their class number. Raises UserError."""
    suffixes = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) != CLASSES:
        raise UserError(f"{folder} has {len(classes)} folders of classes instead of {CLASSES}: {WHERE}")
    found = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")
        if not files:
            raise UserError(f"the class folder {folder / name} has no images: {WHERE}")
        found += [(path, label) for path in files]
    return classes, found


def load_parts(options: argparse.Namespace) -> dict[str, Part]:
    """The parts of the data set from folders of images; nothing is downloaded."""
    parts, known = {}, None
    for name, choices in PARTS.items():
        folders = [options.data_dir / choice for choice in choices if (options.data_dir / choice).is_dir()]
        if not folders:
            raise UserError(f"there is no folder {options.data_dir / choices[0]}: {WHERE}")
        classes, found = list_images(folders[0])
        if known not in (None, classes):
            raise UserError(f"{folders[0]} has other classes than the train folder: {WHERE}")
        known = classes
        parts[name] = Part([path for path, _ in found], [label for _, label in found],
                           [f"{name}/{classes[label]}/{path.name}" for path, label in found])
    return parts
# <<< shared: transfer_folders


# >>> shared: transfer_images (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
def build_view(steps: tuple[tuple, ...], size: int | None) -> transforms.Compose:
    """torchvision's transforms of 8-bit images as in `steps`, (name, values...); `size` scales all sizes to a smoke run's."""
    def scaled(value):
        if isinstance(value, tuple):
            return tuple(map(scaled, value))
        return value if size is None else max(1, round(value * size / IMAGE_SIZE))

    sized = ("Resize", "RandomCrop", "CenterCrop", "RandomResizedCrop")
    return transforms.Compose([getattr(transforms, name)(*(scaled(value) if name in sized and k == 0 else value
                                                           for k, value in enumerate(values))) for name, *values in steps])


class Part(Dataset):
    """Images with labels. Item (seed, epoch, index): a view (H, W, 3) uint8 that depends on nothing else, and the label."""

    def __init__(self, images: numpy.ndarray | list[Path], labels: list[int], names: list[str] | None = None):
        self.images, self.labels = images, labels  # (N, H, W) or (N, H, W, 3) uint8, or files
        self.names = names  # of files, for the fingerprint: class/file
        self.view: transforms.Compose | None = None
        self.kept: list[tuple[int, int]] = []  # files: width and height in memory
        self.buffer: numpy.ndarray | None = None
        self.loader: DataLoader | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, positions: list[int]) -> Part:
        pick = [[values[i] for i in positions] if values is not None else None for values in (self.labels, self.names)]
        return Part(self.images[positions] if isinstance(self.images, numpy.ndarray) else [self.images[i] for i in positions],
                    *pick)

    def __getitem__(self, item: tuple[int, int, int]) -> tuple[Tensor, int]:
        seed, epoch, index = item
        generator = torch.default_generator
        before = generator.get_state()  # without workers this is the process that draws the dropout masks
        generator.manual_seed(seed_of(seed, "view", epoch, index))
        pixels = torch.from_numpy(numpy.array(self.view(self.image(index))))
        generator.set_state(before)
        return (pixels if pixels.ndim == 3 else pixels.unsqueeze(2).expand(-1, -1, 3)), self.labels[index]

    def image(self, index: int) -> Image.Image:
        if isinstance(self.images, numpy.ndarray):
            return Image.fromarray(self.images[index])
        if self.buffer is None:
            return self.decode(index)
        (width, height), start = self.kept[index], self.starts[index]
        return Image.fromarray(self.buffer[start : start + width * height * 3].reshape(height, width, 3))

    def decode(self, index: int) -> Image.Image:
        with Image.open(self.images[index]) as file:
            image = file.convert("RGB")
        return self.view.transforms[0](image) if image.size != self.kept[index] else image  # Resize: the same for every view

    def decode_all(self, workers: int, quiet: bool) -> None:
        """Decodes every file once: those that cannot be read are named, the others stay in memory if they fit (half of what
        is free, shared by the processes of this machine): resized, or as they are where that is smaller."""
        first, broken = self.view.transforms[0], []
        for path in self.images:
            try:
                with Image.open(path) as file:
                    width, height = file.size
                target = first.size if isinstance(first, transforms.Resize) else (height, width)
                if isinstance(target, int):  # the shorter side
                    target = [int(target * side / min(width, height)) for side in (height, width)]
                self.kept.append(min((width, height), (target[1], target[0]), key=math.prod))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                broken.append(f"{path} ({error})")
        if not broken:
            self.starts = numpy.cumsum([0] + [3 * width * height for width, height in self.kept])
            total = int(self.starts[-1])
            if total < free_memory() / 2 / int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
                buffer = numpy.frombuffer(mmap.mmap(-1, total), numpy.uint8)  # memory that forked workers write into
            else:
                buffer = None
            checks = DataLoader(Decoder(self, buffer), batch_size=32, num_workers=workers, collate_fn=list,
                                multiprocessing_context="fork" if workers else None)
            with tqdm(total=len(self), unit="image", desc="decoding", leave=False, disable=True if quiet else None) as bar:
                for reasons in checks:
                    broken += filter(None, reasons)
                    bar.update(len(reasons))
            self.buffer = buffer
            if not quiet:
                print(f"{len(self):,} images decoded: " + (f"{total / 1e6:,.1f} MB in memory" if buffer is not None else
                      f"{total / 1e6:,.1f} MB are too much to keep, so each is decoded anew in each epoch"))
        if broken:
            raise UserError(f"{len(broken)} of {len(self)} images cannot be read: {', '.join(broken[:5])}"
                            f"{', ...' * (len(broken) > 5)}: fetch them anew or remove them")


class Decoder(Dataset):
    """Item: decodes one file of a Part into the shared buffer; returns what is wrong with it, or nothing."""

    def __init__(self, part: Part, buffer: numpy.ndarray | None):
        self.part, self.buffer = part, buffer

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> str:
        try:
            pixels = numpy.asarray(self.part.decode(index))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"{self.part.images[index]} ({error})"
        if self.buffer is not None:
            self.buffer[self.part.starts[index] : self.part.starts[index + 1]] = pixels.reshape(-1)
        return ""


def free_memory() -> float:
    """Bytes that may be taken without swapping, as far as the system tells: of the machine and of the container."""
    free = math.inf
    with contextlib.suppress(OSError, ValueError, IndexError):
        free = 1024 * float(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return free


def fingerprint(parts: list[Part]) -> str:
    """SHA-256 of all images and labels: pixels of arrays, names and bytes of files. Raises UserError."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part.images, numpy.ndarray):
            digest.update(numpy.ascontiguousarray(part.images))
            digest.update(numpy.asarray(part.labels, dtype=numpy.uint8))
        else:
            for path, name, label in zip(part.images, part.names, part.labels):
                try:
                    content = path.read_bytes()
                except OSError as error:
                    raise UserError(f"{path} cannot be read ({error.strerror}): fetch it anew") from None
                digest.update(f"{name}\0{label}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]
# <<< shared: transfer_images


# >>> shared: transfer_data (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
@dataclasses.dataclass
class Data:
    train: Part
    heldout: Part | None  # chooses the epoch; nothing where the publication chose it on the test set (Q7)
    test: Part
    norm: tuple
    facts: dict  # what the log says of the data


def shuffled(count: int, *purpose: object) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(*purpose))).tolist()


def read_parts(options: argparse.Namespace) -> dict[str, Part]:
    """`load_parts`, with every way in which data can be missing, damaged or foreign turned into a sentence."""
    try:
        with contextlib.nullcontext() if options.no_download else one_at_a_time(options.data_dir):
            parts = load_parts(options)
    except (RuntimeError, AssertionError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, EOFError,
            ImportError, pickle.UnpicklingError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{DATASET} cannot be read from {options.data_dir} ({reason.rstrip('.')}): {WHERE}") from error
    for name, part in parts.items():
        found, all_classes = set(part.labels), set(range(CLASSES))
        if not found or len(part.images) != len(part) or found - all_classes or name == "train" and found != all_classes:
            raise UserError(f"the {name} part of {DATASET} in {options.data_dir} is damaged or incomplete ({len(part.images)} "
                            f"images, {len(part)} labels, {len(set(part.labels))} of {CLASSES} classes): {WHERE}")
    return parts


def load_data(options: argparse.Namespace) -> Data:
    """The data set, split as the protocol says, checked, decoded."""
    parts = read_parts(options)
    counts = {name: len(part) for name, part in parts.items()}
    sha256 = fingerprint(list(parts.values()))
    complete = all(counts[name] == IMAGES[name] for name in counts if IMAGES[name] is not None)
    if complete and FINGERPRINT and sha256 != FINGERPRINT:
        raise UserError(f"{DATASET} in {options.data_dir} has the right size but not the official content (a damaged file?): "
                        f"{WHERE}")
    if options.limit:  # a sample: the first images of a folder are of one class
        parts = {name: part.subset(sorted(shuffled(len(part), "limit", name)[: options.limit])) for name, part in parts.items()}
    if options.protocol == "corrected" and "heldout" not in parts:  # Q7
        order, tenth = shuffled(len(parts["train"]), "heldout"), max(1, len(parts["train"]) // 10)
        train = parts["train"]
        parts |= {"heldout": train.subset(sorted(order[:tenth])), "train": train.subset(sorted(order[tenth:]))}
    for name, part in parts.items():
        part.view = build_view(TRAIN_VIEW if name == "train" else TEST_VIEW, options.image_size)
        if not isinstance(part.images, numpy.ndarray):
            part.decode_all(options.workers, options.quiet)
    facts = {name: len(parts[name]) if name in parts else 0 for name in ("train", "heldout", "test")}
    facts |= {f"complete_{name}": count for name, count in counts.items()}
    facts |= {"sha256": sha256, "official": complete and sha256 not in NOT_OFFICIAL}
    norm = IMAGENET_NORM if options.protocol == "corrected" else NORM  # Q10
    return Data(parts["train"], parts.get("heldout"), parts["test"], norm, facts)
# <<< shared: transfer_data


# ---- Networks --------------------------------------------------------------------------------------------------------------
# >>> shared: spinal (origin MNIST/mnist.py; edit there, then: make sync)
class SpinalLayers(nn.Module):
    """The hidden layers of a SpinalNet (paper, section III; spec mnist.md 1.1): (N, features) -> (N, layers * width).

    The input is cut into halves A, B. Layer k sees one half (A, B, A, B, ...) and, from the second on, the output of layer
    k - 1, in this order. All outputs are joined, the first layer's first. With dropout and batch norm: flavour DBR.
    """

    def __init__(self, features: int, layers: int, width: int, dropout: float = 0.0, batch_norm: bool = False):
        super().__init__()
        self.half = features // 2
        self.hidden = nn.ModuleList()
        for k in range(layers):
            parts = [nn.Dropout(dropout)] if dropout else []
            parts.append(nn.Linear(self.half + (width if k else 0), width))
            parts += [nn.BatchNorm1d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
            self.hidden.append(nn.Sequential(*parts))

    def forward(self, x: Tensor) -> Tensor:
        halves = x[:, : self.half], x[:, self.half : 2 * self.half]
        outputs = [self.hidden[0](halves[0])]
        for k, layer in enumerate(self.hidden[1:], start=1):
            outputs.append(layer(torch.cat([halves[k % 2], outputs[-1]], 1)))
        return torch.cat(outputs, 1)
# <<< shared: spinal


# >>> shared: transfer_networks (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
FLAVOURS = {  # of the released Spinal heads: dropout, batch norm, what follows a hidden layer
    "R": (0.0, False, nn.ReLU), "DBR": (0.5, True, nn.ReLU), "LIN": (0.0, False, nn.Identity),  # LIN: one affine map (Q6)
    "LEAKY": (0.0, False, nn.LeakyReLU),  # slope 0.01; layers 3 and 4 are called again in place of 5 and 6 (Q15)
}


class TransferSpinalLayers(SpinalLayers):
    """SpinalLayers of any flavour: (N, features) -> (N, layers * width)."""

    def __init__(self, features: int, layers: int, width: int, flavour: str):
        dropout, batch_norm, activation = FLAVOURS[flavour]
        super().__init__(features, layers, width, dropout, batch_norm)
        self.again = flavour == "LEAKY"
        for layer in self.hidden:
            layer[-1] = activation()

    def forward(self, x: Tensor) -> Tensor:
        if not self.again:
            return super().forward(x)
        halves = x[:, : self.half], x[:, self.half : 2 * self.half]
        outputs = [self.hidden[0](halves[0])]
        for k in range(1, len(self.hidden)):
            layer = self.hidden[k if k < 4 else 2 + k % 2]  # Q15: the layers from the fifth on stay unused
            outputs.append(layer(torch.cat([halves[k % 2], outputs[-1]], 1)))
        return torch.cat(outputs, 1)


def head_ignored(network: str, protocol: str) -> bool:
    """Q1: the new head hangs on an attribute that VGG never calls; its 1000 outputs for ImageNet are trained instead."""
    return network in HEAD_IGNORED and protocol == "published"


def head_shape(network: str, head: str, protocol: str, layers: int | None, width: int | None, flavour: str | None) -> tuple:
    """Hidden layers, width and flavour of the head (the flavour of an FC head: none); published values where they are None."""
    recipe = RECIPES[network]
    if head == "fc":
        return (*recipe.fc[:2], "")
    published = recipe.corrected_flavour if protocol == "corrected" and recipe.corrected_flavour else recipe.spinal[2]
    return layers or recipe.spinal[0], width or recipe.spinal[1], flavour or published


def build_network(network: str, head: str | None, *, protocol: str = "published", width: int | None = None,
                  layers: int | None = None, pretrained: bool | str = True, flavour: str | None = None) -> nn.Module:
    """A torchvision network with a new head, on the CPU: (N, 3, H, W) float -> logits (N, classes).

    network: one of BACKBONES. head: "fc" or "spinal" (None: spinal). width, layers, flavour: of the Spinal head (None: as
    published). pretrained: True (torchvision's first ImageNet weights), their name, or False. Nothing is frozen. Where the
    published head is ignored (Q1): logits (N, 1000). Raises ValueError for what does not exist, UserError without the weights.
    """
    head = head or "spinal"
    if network not in RECIPES or head not in ("fc", "spinal") or protocol not in ("published", "corrected") or \
            flavour not in (None, *FLAVOURS):
        raise ValueError(f"there is no network {network!r} with head {head!r} (flavour {flavour}) under protocol {protocol!r}")
    if head == "fc" and (width, layers, flavour) != (None, None, None):
        raise ValueError("width, layers and flavour belong to the Spinal head; the default FC head has its published size")
    trunk = load_backbone(network, "IMAGENET1K_V1" if pretrained is True else pretrained or None)
    place = "classifier" if hasattr(trunk, "classifier") else "fc"
    features = next(part for part in getattr(trunk, place).modules() if isinstance(part, nn.Linear)).in_features
    layers, width, flavour = head_shape(network, head, protocol, layers, width, flavour)
    parts, dropout = [], RECIPES[network].fc[2]
    if head == "spinal":
        parts, dropout = [TransferSpinalLayers(features, layers, width, flavour)], FLAVOURS[flavour][0]
        parts += [nn.Dropout(dropout)] * (dropout > 0)
        features = layers * width
    else:
        for _ in range(layers):
            parts += [nn.Linear(features, width), nn.ReLU()] + [nn.Dropout(dropout)] * (dropout > 0)
            features = width
    setattr(trunk, "fc" if head_ignored(network, protocol) else place, nn.Sequential(*parts, nn.Linear(features, CLASSES)))
    return trunk


def load_backbone(network: str, weights: str | None) -> nn.Module:
    """torchvision's network, its weights downloaded if they are not there yet. Raises UserError if they cannot be had."""
    if weights is None:
        return torchvision.models.get_model(network, weights=None)
    names = {item.name: item for item in torchvision.models.get_model_weights(network)}
    if weights.upper() not in names:
        raise UserError(f"torchvision has no weights {weights} for {network}, only {', '.join(names).lower()} and none")
    found = names[weights.upper()]
    try:
        return torchvision.models.get_model(network, weights=found)
    except (OSError, RuntimeError, http.client.HTTPException, pickle.UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the ImageNet weights of {network} cannot be had ({reason.rstrip('.')}): check the network, or put "
                        f"{found.url} into {Path(torch.hub.get_dir()) / 'checkpoints'}, or take --weights none") from error


def freeze(network: nn.Module) -> None:
    """Only the layers where ImageNet's head was go on learning; batch norm still updates its running statistics."""
    live = network.classifier if hasattr(network, "classifier") else network.fc
    network.requires_grad_(False)
    live.requires_grad_(True)
# <<< shared: transfer_networks


# >>> shared: counts (origin MNIST/mnist.py; edit there, then: make sync)
def count_fc_multiplications(network: nn.Module, sample: Tensor) -> int:
    """in x out summed over every call of a linear layer for one sample (N = 1); biases and convolutions are not counted."""
    calls = []
    hooks = [module.register_forward_hook(lambda m, _, __: calls.append(m.in_features * m.out_features))
             for module in network.modules() if isinstance(module, nn.Linear)]
    mode = network.training
    with torch.no_grad():
        network.eval()(sample)
    network.train(mode)
    for hook in hooks:
        hook.remove()
    return sum(calls)
# <<< shared: counts


# ---- Processes -------------------------------------------------------------------------------------------------------------
# >>> shared: team (origin MNIST/mnist.py; edit there, then: make sync)
class SaidElsewhere(UserError):
    """A mistake that the first process reports."""


class Team:
    """The processes that train one network together: one by default, those of torchrun if it started them.

    Each batch is cut into one part for each process; gradients are averaged so that a step is that of the whole batch. On CUDA
    batch norm sees the whole batch, too (SyncBatchNorm). Several machines need a results folder that all of them see.
    """

    def __init__(self, options: argparse.Namespace):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_RANK", 0))
        if self.size > 1 and options.device in ("auto", "cuda") and torch.cuda.is_available():
            if local >= torch.cuda.device_count():
                raise UserError(f"{self.size} processes are too many for {torch.cuda.device_count()} CUDA devices: choose a "
                                "smaller --nproc-per-node, or --device cpu")
            options.device = f"cuda:{local}"
        self.device = choose_device(options.device)
        if self.size > 1:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def first(self, work: callable):
        """Does the work in the first process and returns its result in all of them; so they also fail together."""
        result = error = None
        if self.rank == 0:
            try:
                result = work()
            except (UserError, OSError) as stop:
                error = stop
                if self.size == 1:
                    raise
        if self.size > 1:
            box = [result, str(error) if error else None]
            distributed.broadcast_object_list(box)
            if error:
                raise error
            if box[1]:
                raise SaidElsewhere(box[1])
            result = box[0]
        return result

    def add(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def wrap(self, network: nn.Module, ignored: bool) -> nn.Module:
        """The network whose backward pass averages gradients; `ignored`: it has layers that are never called."""
        if self.size == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices, find_unused_parameters=ignored)


def together(work: callable) -> callable:
    """`work(argv)` for torchrun: all processes end together, and what is wrong is said once."""
    def watched(argv: list[str] | None) -> None:
        try:
            work(argv)
        except SaidElsewhere:
            sys.exit(2)
        except RuntimeError as error:
            if isinstance(error, getattr(distributed, "DistError", ())) or "gloo" in str(error):
                raise UserError("another process of this run stopped: see its message") from error
            raise
        finally:
            if distributed.is_available() and distributed.is_initialized():
                distributed.destroy_process_group()
    return watched
# <<< shared: team


# ---- Training --------------------------------------------------------------------------------------------------------------
# >>> shared: transfer_training (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
class Plan(Sampler):
    """The batches of the next pass, each a list of items of a Part."""

    def __init__(self):
        self.batches: list[list[tuple[int, int, int]]] = []

    def __iter__(self) -> Iterator:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def load_batches(part: Part, batches: list, workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (N, H, W, 3) uint8 and labels (N,) of each batch, on the device, made by worker processes that live on."""
    if part.loader is None:
        part.loader = DataLoader(part, batch_sampler=Plan(), num_workers=workers, persistent_workers=workers > 0,
                                 pin_memory=device.type == "cuda", multiprocessing_context="fork" if workers else None,
                                 generator=torch.Generator())  # its own: it must not draw from the dropout's
    part.loader.batch_sampler.batches = batches
    for images, labels in part.loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def share_batches(order: list[int], options: argparse.Namespace, team: Team, rank: int) -> list[tuple[list[int], int, bool]]:
    """What process `rank` does in an epoch: (indices, size of the whole batch, whether a step follows), one each pass.

    A last batch with fewer images than processes is left out.
    """
    passes = []
    for batch in torch.tensor(order).split(options.batch_size):
        if len(batch) < team.size:
            break
        pieces = batch.tensor_split(team.size)[rank].tensor_split(min(options.accumulate, len(batch) // team.size))
        passes += [(piece.tolist(), len(batch), k == len(pieces) - 1) for k, piece in enumerate(pieces)]
    return passes


def moments(norm: tuple, device: torch.device) -> list[Tensor]:
    """Mean and deviation of each channel on the device, (3, 1, 1)."""
    return [torch.tensor(values, device=device).view(-1, 1, 1) for values in norm]


def normalise(images: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """ToTensor and Norm: (N, H, W, 3) uint8 to standardised float (N, 3, H, W), channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255).sub_(shift).div_(scale)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, passes: list, items: tuple,
                options: argparse.Namespace, team: Team, tick: callable) -> float:
    """One epoch in the given order. Returns the mean loss of all processes; reads the device only at the end."""
    model.train()
    total, norm = torch.zeros((), device=team.device), moments(data.norm, team.device)
    batches = [[(*items, index) for index in indices] for indices, _, _ in passes]
    optimizer.zero_grad(set_to_none=True)
    loader = load_batches(data.train, batches, options.workers, team.device)
    for (images, labels), (_, count, step) in zip(loader, passes):
        with contextlib.nullcontext() if step or team.size == 1 else model.no_sync():
            with autocast(team.device, options.precision):
                outputs = model(normalise(images, *norm))
            loss = F.cross_entropy(outputs.float(), labels, reduction="sum")
            (loss * (team.size / count)).backward()  # DistributedDataParallel divides by the number of processes
        total += loss.detach()
        if step:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            tick()
    images = torch.tensor(float(sum(len(indices) for indices, _, _ in passes)), device=team.device)
    return float(team.add(total) / team.add(images))


@torch.no_grad()
def evaluate(network: nn.Module, part: Part, data: Data, options: argparse.Namespace, team: Team) -> tuple[float, float]:
    """Mean loss and accuracy in per cent; each process sees its share of the images."""
    network.eval()
    if team.size > 1:
        for buffer in network.buffers():  # batch norm's statistics, where they are not synchronised: those of the first process
            distributed.broadcast(buffer, 0)
    mine = [(0, 0, index) for index in range(team.rank, len(part), team.size)]
    size = 2 * max(1, options.batch_size // options.accumulate // team.size)
    totals = torch.zeros(2, device=team.device, dtype=torch.float64 if team.device.type != "mps" else torch.float32)
    norm = moments(data.norm, team.device)
    batches = [mine[k : k + size] for k in range(0, len(mine), size)]
    for images, labels in load_batches(part, batches, options.workers, team.device):
        with autocast(team.device, options.precision):
            outputs = network(normalise(images, *norm))
        totals[0] += F.cross_entropy(outputs.float(), labels, reduction="sum")
        totals[1] += (outputs.argmax(1) == labels).sum()
    loss, correct = (team.add(totals) / len(part)).tolist()
    return loss, 100 * correct
# <<< shared: transfer_training


# ---- Log and checkpoint ----------------------------------------------------------------------------------------------------
# >>> shared: log (origin MNIST/mnist.py; edit there, then: make sync)
def rounded(value: float, digits: int = 6) -> float | None:
    """Six significant digits keep a thousand logs small; JSON has no word for a loss that is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def provenance(device: torch.device) -> dict:
    """What ran where: script, versions, device."""
    script = Path(__file__).resolve()
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        models = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        name = models[0] if models else name
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    revision = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(script.parent), "log", "-1", "--format=%h", "--", script.name]
        revision = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
                "numpy": numpy.__version__}
    return {"script_sha256": hashlib.sha256(script.read_bytes()).hexdigest()[:16], "git_revision": revision,
            "device": device.type, "device_name": name, "threads": torch.get_num_threads(), "versions": versions,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def peak_memory(device: torch.device) -> int | None:
    """Most bytes ever held: by CUDA tensors on that device, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def naming(path: Path):
    """Makes an error in here say which file it is about; when a write fails, the operating system does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class RunLog:
    """The JSON-lines file of one run: `NAME.jsonl.part` while unfinished, `NAME.jsonl` as the last act.

    The unfinished file is locked by the process that writes it, which the system undoes when that process dies; `NAME.pid`
    says which one it is.
    """

    def __init__(self, folder: Path, name: str):
        self.path, self.part, self.owner = (folder / f"{name}{suffix}" for suffix in (".jsonl", ".jsonl.part", ".pid"))
        self.file = None

    def open(self, start: dict, epochs_done: int) -> bool:
        """Opens the unfinished log and keeps its first `epochs_done` epoch lines if it began with the same `start`.

        Returns whether it did; otherwise the file is begun anew. Raises UserError if another process has it open.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.part, "a+b", buffering=0)  # nothing is left in a buffer when a write fails
        with naming(self.part):
            self.lock()
            self.file.seek(0)
            lines = [line + b"\n" for line in self.file.read().split(b"\n")[:-1]]  # what follows the last newline is torn
            same = 0 < epochs_done < len(lines) and self.comparable(lines[0]) == self.comparable(json.dumps(start))
            self.file.truncate(sum(map(len, lines[: 1 + epochs_done])) if same else 0)
        if not same:
            if len(lines) > 1:
                print(f"note: {self.part.name} begins anew: it was made with other versions, settings or text of the script,"
                      " on another device, or its checkpoint is missing", file=sys.stderr)
            self.write(start)
        return same

    def lock(self) -> None:
        """Raises UserError if another process has this log, or has just finished it."""
        try:
            import fcntl
        except ImportError:  # Windows has no flock; two runs at once are not detected there
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            who = "one that does not say which it is"
            with contextlib.suppress(OSError, ValueError):
                who = self.owner.read_text(encoding="utf-8").strip() or who
            raise UserError(f"another process ({who}) is writing {self.part}: wait for it, or stop it first") from None
        except OSError:  # a file system without locks: as on Windows
            return
        if not self.part.exists() or not os.path.samestat(os.fstat(self.file.fileno()), self.part.stat()):
            raise UserError(f"another process has just finished {self.path}: repeat the command")
        self.owner.write_text(f"{os.getpid()} on {platform.node()}\n", encoding="utf-8")

    @staticmethod
    def comparable(line: bytes | str) -> dict | None:
        """A start line without its time."""
        try:
            record = json.loads(line)
            record["provenance"].pop("started")
        except (ValueError, KeyError, TypeError):
            return None
        return record

    def write(self, record: dict) -> None:
        rest = json.dumps(record, allow_nan=False).encode() + b"\n"
        with naming(self.part):
            while rest:
                rest = rest[self.file.write(rest) :]
            os.fsync(self.file.fileno())  # before the checkpoint of the same epoch, which must not be ahead of the log

    def finish(self, record: dict) -> None:
        self.write(record)
        self.owner.unlink(missing_ok=True)
        os.replace(self.part, self.path)
        self.file.close()


class Checkpoint:
    """The state after an epoch, with the one before it, each written atomically and followed by its SHA-256.

    torch.load alone takes most altered bytes for numbers. A torn, altered or foreign file counts as none.
    """

    def __init__(self, path: Path):
        self.path, self.previous, self.partial = path, path.with_suffix(".previous.pt"), path.with_suffix(".tmp")
        self.saved_at, self.cost = 0.0, 0.0

    def load(self, device: torch.device) -> dict | None:
        for path in (self.path, self.previous):
            try:
                content = path.read_bytes()
                if hashlib.sha256(content[:-32]).digest() != content[-32:]:
                    raise ValueError("its checksum is wrong")
                state = torch.load(io.BytesIO(content[:-32]), map_location=device, weights_only=True)
                if {"run", "state"} <= set(state):
                    return state
                reason = "it is no checkpoint of this collection"
            except (FileNotFoundError, NotADirectoryError):  # the first also between the two renamings of `save`
                continue
            except torch.OutOfMemoryError:
                raise
            except (OSError, EOFError, LookupError, AttributeError, RuntimeError, TypeError, ValueError,
                    pickle.PickleError) as error:
                reason = str(error).partition("\n")[0]
            print(f"note: {path} is not used: {reason}", file=sys.stderr)
        return None

    def save(self, state: dict) -> None:
        """Skipped while saving at this pace would cost more than a twentieth of the time."""
        began = time.monotonic()
        if began - self.saved_at < 20 * self.cost:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(state, content)  # not into the file: on a full disk torch raises a RuntimeError that says nothing
        content.write(hashlib.sha256(content.getbuffer()).digest())
        try:
            with naming(self.partial), open(self.partial, "wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self.partial.unlink(missing_ok=True)  # a half file would fill the disk for the other runs
            raise
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path, self.previous)
        os.replace(self.partial, self.path)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - began

    def remove(self) -> None:
        for path in (self.path, self.previous, self.partial):
            path.unlink(missing_ok=True)
# <<< shared: log


# >>> shared: transfer_run (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
def stages_of(options: argparse.Namespace) -> list[tuple[float, int]]:
    """The published stages; --epochs is shared out among them in proportion, --lr scales their rates."""
    stages = RECIPES[options.network].stages
    total, done, result = sum(epochs for _, epochs in stages), 0, []
    for rate, epochs in stages:
        upto = sum(count for _, count in result)
        done += epochs
        result.append((rate * options.lr / stages[0][0], round(options.epochs * done / total) - upto))
    return [(float(f"{rate:.6g}"), epochs) for rate, epochs in result if epochs]


class Run:
    """One network, head and seed: its weights, optimiser, log and checkpoint."""

    def __init__(self, head: str, seed: int, data: Data, options: argparse.Namespace, team: Team):
        self.options, self.data, self.seed, self.team, self.stages = options, data, seed, team, stages_of(options)
        self.watched = "heldout" if data.heldout else "test"  # the part that is evaluated after each epoch
        self.selection = "heldout" if data.heldout else "best_test"
        spinal = {"layers": options.layers, "width": options.width, "flavour": options.flavour} if head == "spinal" else {}
        shape = head_shape(options.network, head, options.protocol, options.layers, options.width, options.flavour)
        self.row, self.flavour = (options.network, head, *shape[:2]), shape[2]
        self.label = head if head == "fc" else f"spinal{shape[0]}x{shape[1]}"
        build = {"protocol": options.protocol, **spinal}
        try:
            with torch.device("meta"):  # a twin without numbers, to count
                twin = build_network(options.network, head, pretrained=False, **build)
                size = options.image_size or IMAGE_SIZE
                multiplications = count_fc_multiplications(twin, torch.zeros(1, 3, size, size))
        except ValueError as error:
            raise UserError(str(error)) from None
        except RuntimeError as error:
            raise UserError(f"images of {size} pixels are too small for {options.network}: choose a larger "
                            "--image-size") from error
        self.start = self.describe(twin, multiplications)
        self.name = self.start["run"]
        self.log = RunLog(options.results_dir / "logs" / SCRIPT, self.name)
        self.checkpoint = Checkpoint(options.results_dir / "checkpoints" / SCRIPT / f"{self.name}.pt")
        self.finished = team.first(self.log.path.exists) and not options.overwrite
        if self.finished:
            if not self.log.part.exists():  # a process was killed between its last two acts
                self.checkpoint.remove()
            return
        weights = False if options.weights == "none" else options.weights
        if weights and team.size > 1:
            team.first(lambda: load_backbone(options.network, weights) and None)  # one process downloads
        torch.manual_seed(seed_of(seed, "weights"))
        network = build_network(options.network, head, pretrained=weights, **build)
        if options.freeze:
            freeze(network)
        if team.size > 1 and team.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network.to(team.device, memory_format=torch.channels_last)
        self.model = team.wrap(self.network, head_ignored(options.network, options.protocol) or self.flavour == "LEAKY")
        self.new_optimizer(self.stages[0][0])
        self.state = {"epoch": 0, "best": -1.0, "best_epoch": 0, "top": -1.0, "top_epoch": 0, "last": -1.0, "loss": 0.0,
                      "seconds": 0.0, "diverged": False}
        self.best_weights: dict | None = None

    def new_optimizer(self, rate: float) -> None:
        learning = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(learning, lr=rate, momentum=0.9)

    def describe(self, twin: nn.Module, multiplications: int) -> dict:
        """The first line of the log: everything that decides the numbers, and where they come from."""
        options, recipe, team, (name, head, layers, width) = self.options, RECIPES[self.options.network], self.team, self.row
        normed = [part for part in twin.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        together = options.batch_size // options.accumulate // (1 if team.device.type == "cuda" else team.size)
        self.normed_images = together if normed else options.batch_size
        ignored = head_ignored(name, options.protocol)
        usual = "bf16" if team.device.type == "cuda" else "fp32"
        default_flavour = head_shape(name, head, options.protocol, None, None, None)[2]
        changes = {  # option: (part of the name, whether it departs from the published setting)
            "epochs": (f"e{options.epochs}", options.epochs != sum(epochs for _, epochs in recipe.stages)),
            "batch_size": (f"b{options.batch_size}", options.batch_size != recipe.batch_size),
            "lr": (f"lr{options.lr}", options.lr != recipe.stages[0][0]),
            "limit": (f"limit{options.limit}", options.limit is not None),
            "weights": ("w" + options.weights.replace("_", ""), options.weights != WEIGHTS[0]),
            "freeze": ("freeze", options.freeze), "image_size": (f"px{options.image_size}", options.image_size is not None),
            "flavour": (self.flavour, self.flavour != default_flavour),
            "batch_norm": (f"bn{self.normed_images}", self.normed_images != options.batch_size),
            "precision": (options.precision, options.precision != usual)}
        changed = {option: part for option, (part, departs) in changes.items() if departs}
        parts = [name, self.label, options.protocol, *changed.values()]
        if not self.data.facts["official"]:
            parts.append("data" + self.data.facts["sha256"][:8])
        settings = {
            "dataset": DATASET, "network": name, "head": head, "layers": layers, "width": width, "protocol": options.protocol,
            "epochs": options.epochs, "batch_size": options.batch_size, "learning_rate": self.stages[0][0],
            "optimizer": "SGD momentum 0.9", "rate_rule": "x0.1 every 7 epochs of a stage",
            "stages": [list(stage) for stage in self.stages], "selection": self.selection, "precision": options.precision,
            "weights": options.weights, "freeze": options.freeze, "flavour": self.flavour, "head_ignored": ignored,
            "image_size": options.image_size or IMAGE_SIZE, "augmentation": [" ".join(map(str, step)) for step in TRAIN_VIEW],
            "evaluation": [" ".join(map(str, step)) for step in TEST_VIEW], "mean": self.data.norm[0], "std": self.data.norm[1],
            "batch_norm_images": self.normed_images, "limit": options.limit}
        return {"event": "start", "schema": 1, "script": SCRIPT, "run": "-".join(parts) + f"-s{self.seed}", "seed": self.seed,
                "settings": settings, "departures": sorted(changed),
                "parameters": sum(parameter.numel() for parameter in twin.parameters()),
                "fc_multiplications": multiplications, "data": self.data.facts,
                "provenance": provenance(team.device) | {"processes": team.size}}

    def train(self) -> None:
        """All epochs that are missing; the log, if it is there, is gone on with."""
        saved = self.checkpoint.load(self.team.device)
        done = saved["state"]["epoch"] if saved and saved.get("run") == self.name else 0
        if self.team.first(lambda: self.log.open(self.start, done)):
            self.network.load_state_dict(saved["network"])
            self.state, self.best_weights = saved["state"], saved["best_weights"]
            self.optimizer.load_state_dict(saved["optimizer"])
        del saved
        total = sum(epochs for _, epochs in self.stages)
        quiet = self.options.quiet or self.team.rank > 0
        steps = math.ceil(len(self.data.train) / self.options.batch_size)
        with tqdm(total=total * steps, initial=self.state["epoch"] * steps, unit="batch", leave=False, dynamic_ncols=True,
                  disable=True if quiet else None) as bar:
            for epoch in range(self.state["epoch"] + 1, total + 1):
                if self.state["diverged"]:
                    break
                bar.set_postfix_str(f"{self.label}, epoch {epoch}")
                self.one_epoch(epoch, bar.update)
                if not quiet:
                    bar.write(f"seed {self.seed}  {self.label}  epoch {epoch}/{total}  loss {self.state['loss']:.4f}, "
                              f"{self.watched} {self.state['last']:.2f} %", file=sys.stdout)
        self.end()

    def one_epoch(self, epoch: int, tick: callable) -> None:
        """One epoch: begin a stage if it is due, train, evaluate, log, save."""
        began, state, options, team = time.monotonic(), self.state, self.options, self.team
        first = 1
        for stage, (base, epochs) in enumerate(self.stages):
            if epoch < first + epochs:
                break
            first += epochs
        if epoch == first and stage:
            self.network.load_state_dict(self.best_weights)  # of the stage before
            self.new_optimizer(base)
            if options.protocol == "published":
                state.update(best=-1.0, best_epoch=0)  # Q8: the first epoch of a stage is its best so far in any case
        rate = base * 0.1 ** ((epoch - first) // 7)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed_of(self.seed, "dropout", epoch, *[team.rank] * (team.rank > 0)))
        passes = share_batches(self.order(epoch), options, team, team.rank)
        loss = train_epoch(self.model, self.optimizer, self.data, passes, (self.seed, epoch), options, team, tick)
        watched_loss, accuracy = evaluate(self.network, getattr(self.data, self.watched), self.data, options, team)
        if accuracy > state["best"]:
            state.update(best=accuracy, best_epoch=epoch)
            self.best_weights = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
        if accuracy > state["top"]:
            state.update(top=accuracy, top_epoch=epoch)
        seconds = time.monotonic() - began
        state.update(epoch=epoch, last=accuracy, loss=watched_loss, diverged=not math.isfinite(loss),
                     seconds=state["seconds"] + seconds)
        record = {"event": "epoch", "epoch": epoch, "learning_rate": rounded(rate), "train_loss": rounded(loss),
                  f"{self.watched}_loss": rounded(watched_loss), f"{self.watched}_accuracy_pct": rounded(accuracy),
                  "seconds": rounded(seconds, 4)}
        team.first(lambda: self.save(record))

    def order(self, epoch: int) -> list[int]:
        """The images of an epoch in the order of training; `corrected` leaves out a last batch of one image (Q14)."""
        order = shuffled(len(self.data.train), self.seed, "data", epoch)
        alone = self.options.batch_size > 1 and len(order) % self.options.batch_size == 1
        return order[:-1] if alone and self.options.protocol == "corrected" else order

    def check_batches(self) -> None:
        """Q14: batch norm in a head cannot train on one image."""
        if self.flavour == "DBR" and not head_ignored(self.row[0], self.options.protocol):
            for rank in range(self.team.size):
                if any(len(indices) == 1 for indices, _, _ in share_batches(self.order(1), self.options, self.team, rank)):
                    raise UserError(f"batches of {self.options.batch_size} leave one of {len(self.data.train)} training images "
                                    "alone, and batch norm cannot train on one image: choose another --batch-size, --accumulate"
                                    " or --limit")

    def save(self, record: dict) -> None:
        self.log.write(record)
        self.checkpoint.save({"run": self.name, "state": self.state, "network": self.network.state_dict(),
                              "optimizer": self.optimizer.state_dict(), "best_weights": self.best_weights})

    def end(self) -> None:
        """Reads the test set where that has not been done, and closes the log."""
        state, data, last = self.state, self.data, self.state["last"]
        selected, selected_epoch = state["top"], state["top_epoch"]
        if self.selection == "heldout":
            last = evaluate(self.network, data.test, data, self.options, self.team)[1]
            self.network.load_state_dict(self.best_weights)
            selected, selected_epoch = evaluate(self.network, data.test, data, self.options, self.team)[1], state["best_epoch"]
        record = {"event": "end", "outcome": "diverged" if state["diverged"] else "finished", "epochs": state["epoch"],
                  "best_epoch": state["top_epoch"], f"best_{self.watched}_accuracy_pct": rounded(state["top"]),
                  "last_test_accuracy_pct": rounded(last), "selected_epoch": selected_epoch,
                  "selected_test_accuracy_pct": rounded(selected), "seconds": rounded(state["seconds"]),
                  "peak_memory_bytes": peak_memory(self.team.device)}
        if state["diverged"]:
            record["diverged_epoch"] = state["epoch"]
        self.team.first(lambda: self.log.finish(record))
        self.team.first(self.checkpoint.remove)

    def result(self) -> str:
        """One line from the finished log: this run's number beside the paper's."""
        lines = self.log.path.read_text(encoding="utf-8").splitlines()
        start, end = json.loads(lines[0]), json.loads(lines[-1])
        network, head, layers, width = self.row
        kind = f"{'FC' if head == 'fc' else 'Spinal'} {layers}x{width}" if layers else "FC, output layer alone"
        text = f"{DATASET} {network} {kind}, {self.options.protocol}, seed {self.seed}: " \
               f"{end['selected_test_accuracy_pct']:.2f} % (epoch {end['selected_epoch']} of {end['epochs']})"
        if end["outcome"] == "diverged":
            text += f", diverged in epoch {end['diverged_epoch']}"
        if self.row in PAPER:
            text += "; paper: average {:.2f}, best {:.2f}".format(*PAPER[self.row])
            unlike = start["departures"] + ["data"] * (not start["data"]["official"])
            unlike += ["protocol"] * (self.options.protocol == "corrected")
            text += f" (with other {', '.join(unlike)})" if unlike else ""
        return f"{text}. Log: {self.log.path}"
# <<< shared: transfer_run


# ---- Command line ----------------------------------------------------------------------------------------------------------
# >>> shared: options (origin MNIST/mnist.py; edit there, then: make sync)
class Parser(argparse.ArgumentParser):
    """Reports a user's mistake as a UserError instead of printing the usage and leaving."""

    def error(self, message: str):
        raise UserError(message)


def number(low: float, below: float, kind: type = float) -> callable:
    """An argparse type: a number of that kind in [low, below)."""
    def convert(text: str) -> float:
        try:
            if not re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", text):  # Python also takes 1_0, spaces and foreign digits
                raise ValueError
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a {'whole ' * (kind is int)}number, not {text!r}") from None
        if not low <= value < below:
            raise argparse.ArgumentTypeError(f"must be {low} or more and less than {below}, not {text}")
        return value
    return convert


def whole(low: int) -> callable:
    """An argparse type: a whole number of at least `low`."""
    return number(low, 2**31, int)


def folder(text: str) -> Path:
    """An argparse type: the path of a folder, there or not."""
    if not text.strip() or not text.isprintable():  # also what is no text at all, which could not be printed
        raise argparse.ArgumentTypeError(f"must be the name of a folder, not {text!r}")
    return Path(text)


def common_options(parser: argparse.ArgumentParser) -> None:
    """Flags that mean the same in every script."""
    parser.add_argument("--protocol", choices=("published", "corrected"), default="published",
                        help="published: as the released scripts did; corrected: with their quirks mended (see above)")
    parser.add_argument("--epochs", type=whole(1), metavar="N", help="default: as published")
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="default: as published")
    parser.add_argument("--lr", type=number(1e-9, math.inf), metavar="RATE", help="first learning rate; default: as published")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="first seed (default: 0)")
    parser.add_argument("--runs", type=whole(1), default=1, metavar="N", help="repeat with seeds seed..seed+N-1 (default: 1)")
    parser.add_argument("--results-dir", type=folder, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (cuda, else mps, else cpu), cpu, cuda, cuda:1")
    parser.add_argument("--quiet", action="store_true", help="print the results only")
    parser.add_argument("--overwrite", action="store_true", help="run again what is already finished")


def choose_device(name: str) -> torch.device:
    """The torch device of that name. Raises UserError if there is none."""
    if name == "auto":
        mps = getattr(torch.backends, "mps", None)
        name = "cuda" if torch.cuda.is_available() else "mps" if mps and mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps") or device.type != "cuda" and device.index is not None:
            raise RuntimeError
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"there is no device {name!r} here: choose auto, cpu, or a cuda device of this machine") from None
    return device


def guarded(work: callable, argv: list[str] | None) -> int:
    """Runs `work(argv)` and turns every way of stopping into an exit status: 2 user's mistake, 130 Ctrl-C, 143 SIGTERM."""
    def terminate(*_):
        raise KeyboardInterrupt("terminated")

    with contextlib.suppress(ValueError):  # not in the main thread, for instance in a notebook's worker
        signal.signal(signal.SIGTERM, terminate)
    socket.setdefaulttimeout(60)  # seconds; a download that stalls is an error then, and not a wait for ever
    try:
        work(argv)
        return 0
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'a file'} cannot be used ({error.strerror or error}): check the folder, its rights" \
                  " and the space on the disk, then repeat the command; a run goes on after the last epoch that was saved"
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            message = "the device has too little memory: choose a smaller --batch-size, or --device cpu"
        elif isinstance(error, MemoryError) or "allocate memory" in str(error) or "overflow" in str(error):
            message = "this machine has too little memory for a network or a batch of this size: choose smaller ones"
        else:
            raise
    except KeyboardInterrupt as stop:
        print("stopped: the same command goes on after the last epoch that was saved", file=sys.stderr)
        return 143 if "terminated" in stop.args else 130
    print("error: " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in message), file=sys.stderr)  # one line
    return 2
# <<< shared: options


# >>> shared: transfer_command_line (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
WEIGHTS = ("imagenet1k_v1", "imagenet1k_v2", "none")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with the published values filled in. Raises UserError."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    default = next(iter(RECIPES))
    parser.add_argument("--network", choices=RECIPES, default=default, help=f"default: {default}")
    parser.add_argument("--head", choices=("fc", "spinal", "both"), default="both", help="default: both, one after the other")
    parser.add_argument("--layers", type=whole(1), metavar="N", help="hidden layers of the Spinal head; default: as published")
    parser.add_argument("--width", type=whole(1), metavar="N", help="neurons of each of them; default: as published")
    parser.add_argument("--flavour", choices=FLAVOURS, help="of the Spinal head; default: as published. R: ReLU; DBR: dropout, "
                        "batch norm, ReLU; LIN: no activation; LEAKY: leaky ReLU, layers 3 and 4 used twice")
    parser.add_argument("--weights", choices=WEIGHTS, default=WEIGHTS[0],
                        help="of ImageNet, by torchvision (default: the first version, as published); none: from scratch")
    parser.add_argument("--freeze", action="store_true", help="train the head alone (as published nothing is frozen)")
    common_options(parser)
    parser.add_argument("--accumulate", type=whole(1), default=1, metavar="N",
                        help="N passes for each step, so that a small device reaches the published batch (default: 1)")
    parser.add_argument("--image-size", type=whole(16), metavar="N", help=f"a smoke run on small images; default: {IMAGE_SIZE}")
    parser.add_argument("--workers", type=whole(0), metavar="N",
                        help="processes that decode and augment; default: one a core, 8 at most; changes no number")
    parser.add_argument("--data-dir", type=folder, default=Path("data"), metavar="DIR", help="default: data")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on CUDA, else fp32")
    parser.add_argument("--limit", type=whole(2), metavar="N", help="only N images of each part: a smoke run")
    parser.add_argument("--no-download", action="store_true", help="use the data that are there")
    parser.add_argument("--fetch-only", action="store_true", help="fetch and check the data, train nothing")
    options = parser.parse_args(argv)
    recipe = RECIPES[options.network]
    if options.head == "fc" and (options.layers or options.width or options.flavour):
        raise UserError("--layers, --width and --flavour belong to the Spinal head: choose --head spinal or both with them")
    options.epochs = options.epochs or sum(epochs for _, epochs in recipe.stages)
    options.batch_size = options.batch_size or recipe.batch_size
    options.lr = options.lr or recipe.stages[0][0]
    can_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    if options.workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        options.workers = min(8, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    options.workers *= can_fork  # the memory of decoded images is shared by forking
    return options


def work(argv: list[str] | None) -> None:
    """Everything that the command line asks for."""
    options = parse_arguments(argv)
    team = Team(options)
    options.precision = options.precision or ("bf16" if team.device.type == "cuda" else "fp32")
    options.quiet |= team.rank > 0
    torch.backends.cudnn.benchmark = team.device.type == "cuda"  # every step has the same shapes
    if team.device.type == "cuda":  # fp32 is fp32; what bf16 leaves in fp32 may use TF32
        torch.set_float32_matmul_precision("high" if options.precision == "bf16" else "highest")
        torch.backends.cudnn.allow_tf32 = options.precision == "bf16"
    if options.batch_size // options.accumulate < team.size:
        raise UserError(f"a batch of {options.batch_size} cannot be cut into {options.accumulate} passes for {team.size} "
                        "processes: choose a smaller --accumulate or fewer processes")
    if team.size > 1:
        team.first(lambda: read_parts(options) and None)  # one process downloads
    data = load_data(options)
    if not data.facts["official"] and not options.quiet:
        print(f"note: not the official {DATASET} (" + ", ".join(f"{data.facts[f'complete_{name}']:,} {name} images"
              for name in ("train", "heldout", "test") if f"complete_{name}" in data.facts) +
              "): logged under a name of its own, never as the paper's row")
    if options.fetch_only:
        return
    for seed in range(options.seed, options.seed + options.runs):
        for head in ("fc", "spinal") if options.head == "both" else (options.head,):
            run = Run(head, seed, data, options, team)
            if not run.finished:
                run.check_batches()
                if head_ignored(options.network, options.protocol) and team.rank == 0:
                    print("note: as published the new head hangs on an attribute that VGG never calls, so ImageNet's 1000 "
                          "outputs are trained and both heads give the same numbers (Q1); --protocol corrected mends that")
                run.train()
            if team.rank == 0:
                print(f"{'already finished: ' * run.finished}{run.result()}", flush=True)
            del run  # before the next network is built


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 user's mistake, 130 Ctrl-C, 143 SIGTERM."""
    def watched_work(argv: list[str] | None) -> None:
        try:
            work(argv)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            if "DataLoader worker" in reason:
                raise UserError(f"a process that decodes images died ({reason[:200]}): choose fewer --workers, or 0, or give "
                                "the container more shared memory") from error
            raise

    return guarded(together(watched_work), argv)


if __name__ == "__main__":
    sys.exit(main())
# <<< shared: transfer_command_line
