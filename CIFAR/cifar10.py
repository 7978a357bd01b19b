# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "tqdm>=4.66"]
# ///
"""CIFAR-10: default fully connected (FC) head against SpinalNet head. Table II of arXiv 2007.03347, rows "CIFAR-10".

| network  | head           | paper, average | paper, best | command                                                       |
|----------|----------------|---------------:|------------:|---------------------------------------------------------------|
| resnet18 | FC, output only |         90.65 |       91.98 | python cifar10.py --network resnet18 --head fc                |
| resnet18 | Spinal 4 x 20  |          90.39 |       91.42 | python cifar10.py --network resnet18 --head spinal --width 20 |
| vgg19    | FC 4096, 4096  |          90.48 |       90.75 | python cifar10.py --network vgg19 --head fc                   |
| vgg19    | Spinal 4 x 512 |          90.97 |       91.40 | python cifar10.py --network vgg19 --head spinal               |

Only version 2 of the paper prints these, one number a row, FC / Spinal: resnet34 89.56 / 89.88 (4 x 256), vgg11 86.68 / 87.08
and vgg13 87.79 / 89.16 (both 4 x 1024: --width 1024), densenet 77.79 / 81.13 (8 x 16) / 81.95 (8 x 64: --width 64), and
"CNN" 60.65 / 62.37 (6 x 20), here `lenet`: "PyTorch tutorial", says its text, and the printed 62.01k and 30.20k are exactly
the 62,006 and 30,202 parameters of that network and of its head replaced. No script of it was released, so its recipe is the
tutorial's (batch 4, SGD 0.001 with momentum 0.9, mean and deviation 0.5), with the 8 epochs of the table; which epoch the paper
prints is not known, here the last. The `cnn` of the released scripts (5.85M) is in no table, vgg16 in none for this set.

Widths: the default is the released script's. resnet18: label 4 x 20 (3.16M), printed 3.22M fits width 64, script 256 (3.61M).
vgg19: label and script 512 (21.37M), printed 20.16M fits a head with halves of 128 and width 128. vgg11, vgg13: label 1024,
script (of vgg19) 512, printed 9.35M and "95.31M" (9.531M) fit halves of 128 and width 128. resnet34: label and script 256
(6.14M), printed 5.75M fits width 64. Epochs are the table's (resnet18 150, its script 160; vgg19 200; v2: 150 and 35); cnn and
vgg16: the script's.

Cost: the ResNet Spinal head has 468,992 multiplications, 183 times the 2,560 of the default head (it also sees 1,024 features
instead of 256); "fewer computations" does not hold there (Q11). Elsewhere it has fewer: vgg -93.0 %, cnn -76.7 %.

densenet is a guess; its code (SpinalNet_6 and 7 of an early commit) is not specified here. The claimed savings of 87 and 44.1
% are those of 529,408, 68,608 (8 x 16) and 295,936 (8 x 64) multiplications, which fix 1,024 features and one hidden layer of
512. The printed 1.13M and 1.36M then leave 1.0585M to 1.0663M for the trunk, and 1.07M is this trunk with an output layer
alone (with 512 neurons: 1.59M). Of DenseNet-BC trunks with equal blocks, 3 or 4 of them, halving transitions and 1,024
features, one of those tried fits: four blocks of four layers, growth 32, 128 first channels, 256 x 2 x 2 features, 1,063,808
parameters. It gives 1.132554M and 1.360266M, and 1.074058M for the output layer alone; FC 512 has 1.593738M. Its recipe
(ResNet's, batch 100, flavour R, library initialisation) is a guess too.

`python cifar10.py` trains cnn with both heads on the same batches; hours on a CPU, so try --limit 1000 --epochs 2 first, or
--network lenet, which takes minutes.
`--network resnet18relu` or `resnet34relu` is the ResNet with ReLU after the addition (Q9), in either protocol.

`--protocol published` (default) does what the released scripts did; `--protocol corrected` changes exactly this:
  Q1, Q2   cnn: a third of the rate after an epoch below the best (published: FC head a third after epoch 2 and after each
           epoch from 22, so that learning ends by epoch 30; Spinal head constant)
  Q5       epoch and rate are chosen on 5,000 held-out training images (published: on the test set); the test set is read twice
  Q6       the weights of the chosen epoch are kept
  Q7, Q8   mean and deviation measured on the training part (published: none for cnn and vgg, those of CIFAR-100 for resnet)
Q3: as published the two cnn heads ran with seeds 0 and 1, each in a script of its own; here both protocols pair equal seeds,
since ten of each are run. Q4, Q5, Q6: the cnn scripts keep no best epoch, so the number reported is the one printed last; the
log holds the test accuracy of every epoch, also of 1 and 3 to 21, which the FC script did not test. vgg and resnet: best test
epoch.
Kept in both: Q9, Q10, Q17 (a tie improves), Q20, Q21. The networks return log-probabilities; their negative log-likelihood is
the published cross-entropy of logits. Q-numbers: the quirks of the released scripts, listed in this project.

Data go to data/, one log a run to results/logs/cifar10/, checkpoints to results/checkpoints/cifar10/ until the run is
finished. An interrupted run goes on where it stopped when the command is repeated; a finished one is not run again. On one CPU
set-up (processor, library versions, number of threads) a seed gives the same log bit by bit; elsewhere it is another draw.
"""
from __future__ import annotations

import tarfile

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


# >>> shared: recipe (origin MNIST/mnist.py; edit there, then: make sync)
@dataclasses.dataclass(frozen=True)
class RateRule:
    """Learning rate of the next epoch; the default is a constant rate.

    After an epoch that brings no new best accuracy (a tie is none, unless `tie_improves`), or after every epoch if `always`,
    but not before epoch `after` + 1 is over, the rate becomes `scale * base * U ** power` with U uniform in [0, 1), or `decay`
    times the present one. It does so after the epochs in `at` in any case.
    """

    power: int = 0
    scale: float = 1.0
    decay: float | None = None
    after: int = 0
    always: bool = False
    renew: bool = False  # with each new rate a new optimiser, whose momentum starts at zero (Q13)
    tie_improves: bool = False
    at: tuple[int, ...] = ()

    def improves(self, accuracy: float, best: float) -> bool:
        return accuracy >= best if self.tie_improves else accuracy > best

    def next(self, epoch: int, improved: bool, rate: float, base: float, uniform: float) -> float:
        """Rate of epoch + 1, from the rate of `epoch` and whether its accuracy was an improvement (spec mnist.md 5.5, 4.2)."""
        due = epoch in self.at or epoch > self.after and (self.always or not improved)
        if due and self.decay is not None:
            return rate * self.decay
        return self.scale * base * uniform**self.power if due and self.power else rate

    def __str__(self) -> str:
        if not self.power and self.decay is None:
            return "constant"
        what = f"x{self.decay:.4g}" if self.decay is not None else f"{self.scale:g}*lr*U^{self.power}"
        when = "every epoch" if self.always else "if below best" if self.tie_improves else "if not improved"
        return f"{what} {when} after epoch {self.after}" + "".join(f" and after {epoch}" for epoch in self.at)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one network is trained on this data set: the published values, and what `corrected` changes."""

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str  # "SGD" or "Adam"
    spinal: tuple[int, int]  # hidden layers and width of the Spinal head
    fc: tuple[int, int] | None  # the same of the default head; None: there is no default head
    momentum: float = 0.5  # of SGD
    augment: tuple[str, ...] = ()  # in this order
    norm: tuple = (0.1307, 0.3081)  # mean and deviation of pixels in 0..1, of colour images a tuple each; default: MNIST's
    rule: RateRule = RateRule()
    spinal_rule: RateRule | None = None  # of the published Spinal head, where it is another one; None: the same
    corrected_rule: RateRule | None = None  # of both heads; None: as published
    one_thread: bool = False  # on a CPU: several threads only wait for each other in a network as small as this
    bf16: bool = False  # measured over paired seeds: accuracy in bf16 is not to be told from fp32's (results/precision.md)
    selection: str = "best_test"  # whose accuracy is reported under `published`: "best_test" epoch or "last"
# <<< shared: recipe


# ---- Facts of this experiment: CIFAR-10, Table II --------------------------------------------------------------------------
SCRIPT, DATASET, TRAIN_IMAGES, TEST_IMAGES = "cifar10", "CIFAR-10", 50_000, 10_000
CLASSES = {"published": 10, "corrected": 10}  # outputs of the networks
HELDOUT = 10  # `corrected` holds out one in so many training images
SOURCE = torchvision.datasets.CIFAR10
FINGERPRINT = "32e5966899bde482"  # of the official images and labels; None: not known
DENSENET_BLOCKS, DENSENET_GROWTH, DENSENET_FIRST = (4, 4, 4, 4), 32, 128  # a guess, see above
NO_NORM = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # Q7
CIFAR100_NORM = ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))  # Q8
CROP = ("pad_flip_crop",)
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
VGG = Recipe(200, 100, 1e-4, "Adam", spinal=(4, 512), fc=(2, 4096), augment=CROP, norm=NO_NORM,  # section 2.3
             rule=RateRule(power=3, tie_improves=True))
RESNET = Recipe(150, 200, 1e-3, "Adam", spinal=(4, 256), fc=(0, 0), augment=CROP, norm=CIFAR100_NORM,  # section 3.4
                rule=RateRule(power=5, tie_improves=True))
RECIPES = {
    "resnet18": RESNET, "resnet34": RESNET, "vgg19": VGG, "vgg16": VGG,
    "vgg13": dataclasses.replace(VGG, epochs=35), "vgg11": dataclasses.replace(VGG, epochs=35),  # epochs of version 2
    "cnn": Recipe(160, 100, 1e-3, "Adam", spinal=(4, 128), fc=(2, 512), augment=CROP, norm=NO_NORM, selection="last",
                  rule=RateRule(decay=1 / 3, always=True, after=21, at=(2,)),  # Q1; Q2: the Spinal head keeps its rate
                  spinal_rule=RateRule(), corrected_rule=RateRule(decay=1 / 3, tie_improves=True)),
    "lenet": Recipe(8, 4, 1e-3, "SGD", spinal=(6, 20), fc=(2, 120), momentum=0.9, norm=HALVES, one_thread=True,
                    selection="last"),
    "densenet": dataclasses.replace(RESNET, epochs=35, batch_size=100, spinal=(8, 16), fc=(1, 512)),  # a guess but for 35
    "resnet18relu": RESNET, "resnet34relu": RESNET,  # Q9
}
PAPER = {  # (network, head, layers, width): (average, best of ten runs), per cent; Table II of version 3
    ("resnet18", "fc", 0, 0): (90.65, 91.98), ("resnet18", "spinal", 4, 20): (90.39, 91.42),
    ("vgg19", "fc", 2, 4096): (90.48, 90.75), ("vgg19", "spinal", 4, 512): (90.97, 91.40),
}
EXTRA_OPTIONS: dict[str, dict] = {}  # command line options that only this experiment has


# ---- Data ------------------------------------------------------------------------------------------------------------------
# >>> shared: download (origin MNIST/mnist.py; edit there, then: make sync)
STALLED = 60  # seconds without a byte after which a connection counts as broken; without a limit it may wait for ever


@contextlib.contextmanager
def replacing(path: Path):
    """A name beside `path` to write to; the file takes its place once it is complete, and is removed if that fails."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def md5_of(path: Path) -> str | None:
    """In hexadecimal digits; None if there is no such file."""
    digest = hashlib.md5(usedforsecurity=False)
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
        return digest.hexdigest()
    return None


def fetch(path: Path, urls: list[str], md5: str, download: bool) -> None:
    """The file with this checksum at `path`, from the first address that has it, each tried twice, unless it is there.

    Raises RuntimeError that says what each address answered, or that the file is missing or damaged and not to be downloaded.
    """
    found = md5_of(path)
    if found == md5:
        return
    if not download:
        raise RuntimeError(f"{path.name} is missing" if found is None else f"the checksum of {path.name} is wrong")
    failures = {}
    for url in urls * 2:
        print(f"{DATASET}: fetching {path} from {url}", file=sys.stderr)
        digest = hashlib.md5(usedforsecurity=False)
        request = urllib.request.Request(url, headers={"User-Agent": "pytorch/vision"})  # some servers refuse Python's own
        try:
            with replacing(path) as part, open(part, "wb") as file:
                with urllib.request.urlopen(request, timeout=STALLED) as answer, \
                     tqdm(total=answer.length, unit="B", unit_scale=True, leave=False) as bar:
                    while chunk := answer.read(2**18):
                        digest.update(chunk)
                        bar.update(len(chunk))
                        with naming(path):
                            file.write(chunk)
                if digest.hexdigest() != md5:
                    raise RuntimeError("it sent something else, or a corrupted file")
            return
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS):
                raise  # not the server's fault
            failures[url] = str(error) or type(error).__name__
    raise RuntimeError("; ".join(f"{url}: {why}" for url, why in failures.items()))


def read_idx(path: Path) -> Tensor:
    """The array in a file of MNIST's format, uint8 or int64. Raises ValueError that says what is wrong with the file."""
    content, kinds = path.read_bytes(), {8: numpy.dtype("u1"), 12: numpy.dtype(">i4")}
    dims = int(re.search(r"-idx(\d)-", path.name)[1])  # the format puts it in the name: train-images-idx3-ubyte
    first = 4 + 4 * dims
    if len(content) < first or content[:2] != b"\0\0" or content[2] not in kinds or content[3] != dims:
        what = "a web page" if b"<html" in content[:1000].lower() else "no file of MNIST's format" if content else "empty"
        raise ValueError(what)
    kind, shape = kinds[content[2]], [int.from_bytes(content[at : at + 4], "big") for at in range(4, first, 4)]
    expected = first + math.prod(shape) * kind.itemsize
    if len(content) != expected or dims == 3 and shape[1:] != [28, 28]:
        raise ValueError(f"{len(content):,} bytes instead of {expected:,}, or images that are not 28 x 28")
    with contextlib.suppress(FileNotFoundError):  # only files that this collection has unpacked have one
        noted = path.with_name(f"{path.name}.sha256").read_text(encoding="utf-8", errors="replace").split()
        if hashlib.sha256(content).hexdigest() not in noted:
            raise ValueError("not what was unpacked: its checksum is wrong")
    array = numpy.frombuffer(content, kind, offset=first).reshape(shape)
    return torch.from_numpy(array.astype(numpy.int64 if kind.itemsize > 1 else numpy.uint8))


def read_or_unpack(place: Path, names: list[str], read: callable, unpack: callable, download: bool) -> list:
    """What `read(path)` gives for each of these files; those where it raises are first made anew.

    `unpack(names)` yields the contents of that many files, from an archive that it has verified. A damaged file is kept as
    NAME.damaged. Where all is well nothing is written. Raises RuntimeError that names the files.
    """
    def read_all() -> dict[str, str]:
        wrong = {}
        for name in names:
            try:
                results[name] = results[name] if name in results else read(place / name)
            except FileNotFoundError:
                wrong[name] = f"{name}: missing"
            except (OSError, ValueError, pickle.UnpicklingError) as error:
                wrong[name] = f"{name}: {error}"
        return wrong

    results: dict = {}
    wrong = read_all()
    if wrong:
        try:
            if not download and not place.exists():
                raise FileNotFoundError(f"there is no folder {place}")
            with one_at_a_time(place):
                wrong = read_all()  # the process that was waited for may have mended them
                with contextlib.suppress(OSError):
                    for left in place.glob("*.part"):  # by a process that was killed
                        left.unlink()
                for name, content in zip(wrong, unpack(list(wrong))):
                    path = place / name
                    if path.exists():
                        print(f"note: {wrong[name]}; it is kept as {name}.damaged and unpacked anew", file=sys.stderr)
                        os.replace(path, path.with_name(f"{name}.damaged"))
                    with naming(path), replacing(path) as part:
                        part.write_bytes(content)
                    with replacing(path.with_name(f"{name}.sha256")) as part:  # as `sha256sum -c` reads it
                        part.write_text(f"{hashlib.sha256(content).hexdigest()}  {name}\n", encoding="utf-8")
                wrong = read_all()
        except Exception as error:
            raise RuntimeError("; ".join([*wrong.values(), str(error)])) from error
        if wrong:
            raise RuntimeError("; ".join(wrong.values()))
    return [results[name] for name in names]
# <<< shared: download


# >>> shared: cifar_source (origin CIFAR/cifar10.py; edit there, then: make sync)
class ArraysOnly(pickle.Unpickler):
    """Reads CIFAR's pickles: dictionaries, lists, texts and numpy arrays. What else a pickle may name is refused, not run."""

    KNOWN = {"_reconstruct": numpy.empty(0).__reduce__()[0], "ndarray": numpy.ndarray, "dtype": numpy.dtype,
             "encode": lambda text, _: text.encode("latin1")}

    def find_class(self, module: str, name: str):
        if name in self.KNOWN and module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs"):
            return self.KNOWN[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in a file of images")


def load_arrays(options: argparse.Namespace) -> list[Tensor]:
    """Train images (N, 3, 32, 32) uint8, train labels (N,) int64, test images, test labels; fetched if missing or damaged."""
    place, download = options.data_dir / SOURCE.base_folder, not options.no_download  # where torchvision looks
    checksums = dict(SOURCE.train_list + SOURCE.test_list)

    def read(path: Path) -> tuple[Tensor, Tensor]:
        content = path.read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != checksums[path.name]:
            raise ValueError("not the official file: its checksum is wrong" if content else "empty")
        batch = ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        labels = batch["labels"] if "labels" in batch else batch["fine_labels"]
        return torch.from_numpy(batch["data"]).view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)

    def unpack(names: list[str]):
        """From the archive; only these members are read, whatever else it may hold."""
        beside = options.data_dir / SOURCE.filename  # where torchvision leaves it
        archive = beside if beside.exists() else place / SOURCE.filename
        fetch(archive, [SOURCE.url], SOURCE.tgz_md5, download)
        with tarfile.open(archive) as members:
            for name in names:
                yield members.extractfile(f"{SOURCE.base_folder}/{name}").read()

    batches = read_or_unpack(place, list(checksums), read, unpack, download)
    parts = batches[: len(SOURCE.train_list)], batches[len(SOURCE.train_list) :]
    return [torch.cat(tensors) for part in parts for tensors in zip(*part)]
# <<< shared: cifar_source


# >>> shared: data (origin MNIST/mnist.py; edit there, then: make sync)
@dataclasses.dataclass
class Split:
    images: Tensor  # (N, C, H, W) uint8, on the device
    labels: Tensor  # (N,) int64, on the device


@dataclasses.dataclass
class Data:
    train: Split
    heldout: Split | None  # a part of the training set (corrected), or nothing (published)
    test: Split
    norm: tuple  # mean and deviation as in Recipe.norm
    shift: Tensor  # the same on the device, (C, 1, 1)
    scale: Tensor
    facts: dict  # what the log says of the data


def read_arrays(options: argparse.Namespace) -> list[Tensor]:
    """`load_arrays`, with every way in which data can be missing, damaged or foreign turned into a sentence."""
    try:
        arrays = load_arrays(options)
    except UserError:
        raise
    except Exception as error:  # damaged files make a dozen libraries raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        way_out = "run again without --no-download" if options.no_download else "check the network"
        raise UserError(f"{DATASET} cannot be read from {options.data_dir} ({reason.rstrip('.')}): delete any damaged files "
                        f"there and {way_out}, or give a folder that holds it with --data-dir") from error
    classes = CLASSES[options.protocol]
    for part, (images, labels) in (("training", arrays[:2]), ("test", arrays[2:])):
        if len(images) != len(labels) or not len(images) or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise UserError(f"the {part} set of {DATASET} in {options.data_dir} is damaged ({len(images)} images, {len(labels)}"
                            f" labels, not all of them 0 to {classes - 1}): delete its folder and run again to fetch it anew")
    return arrays


def measure(images: Tensor) -> tuple:
    """Mean and deviation of the pixels of each channel on the scale 0..1, four decimals; single numbers for one channel."""
    moments, scale = [], torch.arange(256).double() / 255
    for channel in images.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).double().cpu()  # exact on every device
        mean = round(float((counts * scale).sum() / counts.sum()), 4)
        moments.append((mean, round(float((counts * (scale - mean) ** 2).sum() / counts.sum()) ** 0.5, 4)))
    return moments[0] if len(moments) == 1 else tuple(zip(*moments))


def load_data(options: argparse.Namespace, device: torch.device) -> Data:
    """The data set on the device, split and measured as the protocol says."""
    arrays = read_arrays(options)
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.to(torch.uint8).contiguous().numpy())
    counts = [len(arrays[1]), len(arrays[3])]
    complete = counts == [TRAIN_IMAGES, TEST_IMAGES]
    fingerprint = digest.hexdigest()[:16]
    if complete and FINGERPRINT and not fingerprint.startswith(FINGERPRINT):
        raise UserError(f"{DATASET} in {options.data_dir} has the right size but not the official content (a damaged file?): "
                        "delete its folder and run again to fetch it anew")
    if options.limit:
        arrays = [array[: options.limit] for array in arrays]
    images, labels, test_images, test_labels = (array.to(device) for array in arrays)
    images, test_images = (x if x.ndim == 4 else x.unsqueeze(1) for x in (images, test_images))
    train, heldout, norm = Split(images, labels), None, RECIPES[options.network].norm
    if options.protocol == "corrected":
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed_of("heldout"))).to(device)
        count = max(1, len(order) // HELDOUT)
        held, kept = order[:count].sort()[0], order[count:].sort()[0]
        train, heldout = Split(images[kept], labels[kept]), Split(images[held], labels[held])
        norm = measure(train.images)  # Q17, Q32
    shift, scale = (torch.tensor(x, device=device).view(-1, 1, 1) for x in norm)
    facts = {"train": len(train.labels), "heldout": len(heldout.labels) if heldout else 0, "test": len(test_labels),
             "complete_train": counts[0], "complete_test": counts[1], "sha256": fingerprint, "official": complete}
    return Data(train, heldout, Split(test_images, test_labels), norm, shift, scale, facts)
# <<< shared: data


# >>> shared: pad_flip_crop (origin CIFAR/cifar10.py; edit there, then: make sync)
def pad_flip_crop(images: Tensor, flipped: Tensor, tops: Tensor, lefts: Tensor, pad: int = 4) -> Tensor:
    """Zero pad, flip left to right where `flipped` (N,), cut the original size at `tops`, `lefts` (N,) of the padded image."""
    count, channels, size, _ = images.shape
    padded = F.pad(images, [pad] * 4)
    flipped, tops, lefts = (x.to(images.device) for x in (flipped, tops, lefts))
    line = torch.arange(size, device=images.device)
    rows, columns = tops[:, None] + line, lefts[:, None] + line
    columns = torch.where(flipped[:, None], size + 2 * pad - 1 - columns, columns)
    image = torch.arange(count, device=images.device)
    return padded[image[:, None, None, None], torch.arange(channels, device=images.device)[:, None, None],
                  rows[:, None, :, None], columns[:, None, None, :]]


def random_pad_flip_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad 4, flip with probability 0.5, one of the 9 x 9 crops; crop-then-flip has the same distribution (Q20)."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    tops, lefts = torch.randint(0, 9, (2, len(images)), generator=generator)
    return pad_flip_crop(images, flipped, tops, lefts)
# <<< shared: pad_flip_crop


# >>> shared: augment (origin MNIST/mnist.py; edit there, then: make sync)
def augment(images: Tensor, steps: tuple[str, ...], generator: torch.Generator) -> Tensor:
    """One view of each image (N, C, H, W) uint8, by the functions random_<step> in order. `generator` lives on the CPU."""
    if not steps:
        return images
    views, size = torch.empty_like(images), 2_000  # fits a CPU's cache; the same everywhere, since parts are drawn in turn
    for part, view in zip(images.split(size), views.split(size)):
        for step in steps:
            part = globals()[f"random_{step}"](part, generator)
        view.copy_(part)
    return views
# <<< shared: augment


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


# >>> shared: cifar_networks (origin CIFAR/cifar10.py; edit there, then: make sync)
VGG_DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
RESNET_DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class QuadrantSpinalLayers(nn.Module):
    """Spinal layers on the four quadrants (row by row) of a (N, channels, 2, 2) map: layer k sees quadrant k and the output
    of layer k - 1, in this order; a fifth layer begins again with the first quadrant. Flavour R (spec cifar.md 3.2)."""

    def __init__(self, channels: int, layers: int, width: int):
        super().__init__()
        self.hidden = nn.ModuleList(nn.Sequential(nn.Linear(channels + (width if k else 0), width), nn.ReLU())
                                    for k in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        quadrants = x.flatten(2).unbind(2)
        outputs = [self.hidden[0](quadrants[0])]
        for k, layer in enumerate(self.hidden[1:], start=1):
            outputs.append(layer(torch.cat([quadrants[k % 4], outputs[-1]], 1)))
        return torch.cat(outputs, 1)


class Network(nn.Module):
    """Trunk, then head: (N, 3, 32, 32) -> log-probabilities, whose negative log-likelihood is the logits' cross-entropy."""

    def __init__(self, trunk: nn.Module, head: nn.Module):
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.head(self.trunk(x)), 1)


def convolution(before: int, width: int, norm: bool) -> list[nn.Module]:
    """3x3 with bias, ReLU, and batch norm between them if wanted."""
    return [nn.Conv2d(before, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]


def cnn_trunk() -> nn.Module:
    """Six convolutions, batch norm after each first of a pair: (N, 4096), channel-major (section 1.1)."""
    return nn.Sequential(*convolution(3, 32, True), *convolution(32, 64, False), nn.MaxPool2d(2),
                         *convolution(64, 128, True), *convolution(128, 128, False), nn.MaxPool2d(2), nn.Dropout2d(0.05),
                         *convolution(128, 256, True), *convolution(256, 256, False), nn.MaxPool2d(2), nn.Flatten())


def lenet_trunk() -> nn.Module:
    """The two convolutions of PyTorch's tutorial "Training a classifier": (N, 400), channel-major."""
    return nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Flatten())


def vgg_trunk(depths: tuple[int, ...]) -> nn.Module:
    """Five blocks, each ended by a pool: (N, 512) (section 2.1)."""
    layers, before = [], 3
    for width, depth in zip((64, 128, 256, 512, 512), depths):
        for _ in range(depth):
            layers += convolution(before, width, True)
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten())


class Block(nn.Module):
    """Residual block of the paper: 3x3 convolution on the shortcut too (Q10), no ReLU after the addition unless asked (Q9)."""

    def __init__(self, before: int, width: int, stride: int, last_relu: bool):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                                  nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        same = stride == 1 and before == width
        self.shortcut = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width))
        self.last_relu = last_relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x) + self.shortcut(x)
        return F.relu(x) if self.last_relu else x


def resnet_trunk(depths: tuple[int, ...], last_relu: bool) -> nn.Module:
    """The paper's narrow ResNet: (N, 256, 4, 4) (section 3.1)."""
    layers = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout2d(0.02)]
    before = 32
    for width, depth in zip((32, 64, 128, 256), depths):
        for k in range(depth):
            layers.append(Block(before, width, 2 if k == 0 and width > 32 else 1, last_relu))
            before = width
    trunk = nn.Sequential(*layers)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # section 3.3
    return trunk


class DenseLayer(nn.Module):
    """Adds `growth` channels: batch norm, ReLU, 1x1 convolution to 4 growth, batch norm, ReLU, 3x3 convolution."""

    def __init__(self, before: int, growth: int):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, 4 * growth, 1, bias=False),
                                  nn.BatchNorm2d(4 * growth), nn.ReLU(),
                                  nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet_trunk() -> nn.Module:
    """A guess at the paper's DenseNet: (N, 1024). The head's arithmetic fixes 1,024, printed counts the rest (docstring)."""
    growth, channels = DENSENET_GROWTH, DENSENET_FIRST
    layers = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for number, depth in enumerate(DENSENET_BLOCKS, start=1):
        for _ in range(depth):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        if number < len(DENSENET_BLOCKS):  # transition: half the channels, half the size
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    side = math.isqrt(1024 // channels)
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(side), nn.Flatten())


def published_dropout(network: str, head: str, protocol: str) -> float:
    """Dropout of the head, the same in both heads and protocols: cnn 0.1, VGG 0.5, none elsewhere."""
    return 0.1 if network == "cnn" else 0.5 if network in VGG_DEPTHS else 0.0


def build_network(network: str, head: str | None, *, protocol: str = "published", width: int | None = None,
                  layers: int | None = None, fc_dropout: float | None = None) -> nn.Module:
    """A freshly initialised network on the CPU: (N, 3, 32, 32) float -> (N, classes) log-probabilities.

    network: a key of RECIPES. head: "fc" or "spinal" (None: spinal). width, layers: of the Spinal head (None: published).
    fc_dropout: before the output layer (None: as published). Raises ValueError for what does not exist.
    """
    head = head or "spinal"
    if network not in RECIPES or head not in ("fc", "spinal") or protocol not in ("published", "corrected"):
        raise ValueError(f"there is no network {network!r} with head {head!r} under protocol {protocol!r}")
    if head == "fc" and (width is not None or layers is not None):
        raise ValueError("width and layers belong to the Spinal head; the default FC head has its published size")
    classes, recipe, inner = CLASSES[protocol], RECIPES[network], published_dropout(network, head, protocol)
    layers, width = layers or recipe.spinal[0], width or recipe.spinal[1]
    before_output = inner if fc_dropout is None else fc_dropout
    depth = network.removesuffix("relu")
    if network == "cnn":  # the trunk is drawn first: both heads of a seed get the same one
        trunk, features = cnn_trunk(), 4096
        fc = lambda: [nn.Dropout(inner), nn.Linear(4096, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU()]  # noqa: E731
    elif network == "lenet":
        trunk, features = lenet_trunk(), 400
        fc = lambda: [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]  # noqa: E731
    elif network in VGG_DEPTHS:
        trunk, features = vgg_trunk(VGG_DEPTHS[network]), 512
        fc = lambda: [nn.Linear(512, 4096), nn.ReLU(), nn.Dropout(inner), nn.Linear(4096, 4096), nn.ReLU()]  # noqa: E731
    elif depth in RESNET_DEPTHS:
        trunk, features = resnet_trunk(RESNET_DEPTHS[depth], last_relu=depth != network), 256
        fc = lambda: [nn.MaxPool2d(4), nn.Flatten()]  # noqa: E731
    else:
        trunk, features = densenet_trunk(), 1024
        fc = lambda: [nn.Linear(1024, 512), nn.ReLU()]  # noqa: E731
    if head == "fc":
        parts, joined = fc(), {"cnn": 512, "lenet": 84, "densenet": 512}.get(network, 4096 if network in VGG_DEPTHS else 256)
    elif depth in RESNET_DEPTHS:
        parts, joined = [nn.MaxPool2d(2), QuadrantSpinalLayers(features, layers, width)], layers * width
    else:
        parts, joined = [SpinalLayers(features, layers, width, dropout=inner)], layers * width
    output = nn.Linear(joined, classes)
    if depth in RESNET_DEPTHS:  # section 3.3; every linear layer, also of the Spinal head
        for module in (output, *(part for item in parts for part in item.modules() if isinstance(part, nn.Linear))):
            nn.init.zeros_(module.bias)
    return Network(trunk, nn.Sequential(*parts, nn.Dropout(before_output), output))
# <<< shared: cifar_networks


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


# ---- Training --------------------------------------------------------------------------------------------------------------
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


# >>> shared: training (origin MNIST/mnist.py; edit there, then: make sync)
def default_precision(device: torch.device, recipe: Recipe) -> str:
    """bf16 where it was measured to be faster and as accurate (results/precision.md): on a CPU with AMX. Elsewhere fp32."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bf16" if recipe.bf16 and device.type == "cpu" and amx() else "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bf16: operands of convolutions and matrix products in bf16, sums, weights and optimiser in fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def normalise(images: Tensor, data: Data) -> Tensor:
    """ToTensor and Norm: uint8 to float, 0..255 to 0..1, then standardised."""
    return images.float().div_(255).sub_(data.shift).div_(data.scale)


def build_optimizer(network: nn.Module, recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    """The published optimiser; fused where that is faster. A CUDA graph can follow a rate that is a tensor only."""
    device = next(network.parameters()).device
    cuda = device.type == "cuda"
    rate = torch.tensor(rate, device=device) if cuda else rate
    if recipe.optimizer == "Adam":
        return torch.optim.Adam(network.parameters(), lr=rate, fused=device.type in ("cpu", "cuda"), capturable=cuda)
    return torch.optim.SGD(network.parameters(), lr=rate, momentum=recipe.momentum, fused=cuda or None)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def wants_graph(device: torch.device) -> bool:
    return device.type == "cuda"


def record(step: callable) -> callable:
    """`step()` as a CUDA graph: calling the result runs all its kernels at once."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # PyTorch asks for a few steps in another stream before the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_, value: Tensor) -> Tensor:
        value = value.clone()
        distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        return SumOverProcesses.forward(_, gradient)


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the parts of a batch in all processes; nn.SyncBatchNorm does the same on CUDA, but not on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
        count = SumOverProcesses.apply(x.new_tensor(x.numel() / x.shape[1], dtype=torch.float32))
        mean = SumOverProcesses.apply(x.float().sum(dims)) / count
        centred = x.float() - mean.view(shape)
        variance = SumOverProcesses.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        pass


def share_batch_norm(network: nn.Module) -> None:
    """Makes every batch norm of the network one over all processes; weights and names stay."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = SharedBatchNorm


class Trainer:
    """Training steps of one network: forward pass, loss, backward pass, update. The sum of losses stays on the device.

    On CUDA the step of a full batch is a graph (`record`), because launching the hundred kernels of such small networks takes
    longer than running them. Before the first one, gradients and weights after a step of the graph are compared with those of
    the same step without it; where they differ by more than rounding, or there can be no graph, training goes on without.

    With several processes (torchrun) each trains on its part of every batch, without a graph.

    The same seed gives the same bits on one CPU set-up. On CUDA it gives the same weights to begin with, the same batches and
    augmentation, but PyTorch does not promise the order in which cuDNN's backward passes add: another draw each time.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, data: Data, precision: str, team: Team):
        self.network, self.optimizer, self.data, self.precision, self.team = network, optimizer, data, precision, team
        self.model = team.wrap(network, False)  # averages gradients over the processes
        self.images = self.labels = self.graph = None  # the graph reads its batch from here
        self.total = torch.zeros((), device=data.shift.device)
        self.wants_graph = wants_graph(data.shift.device) and team.size == 1

    def step(self, images: Tensor, labels: Tensor, share: float = 1.0) -> None:
        """`share`: what makes the average over processes that of the whole batch."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(images.device, self.precision):
            outputs = self.model(normalise(images, self.data))
        loss = F.nll_loss(outputs.float(), labels)
        (loss if share == 1.0 else loss * share).backward()
        self.optimizer.step()
        self.total += loss.detach() * len(labels)

    def epoch(self, split: Split, order: Tensor, batch_size: int, tick: callable) -> float:
        """One pass in the given order, the last batch not dropped. Returns the mean loss; reads the device only at the end."""
        self.network.train()
        self.total.zero_()
        for index in order.split(batch_size):
            if self.wants_graph and self.graph is None and len(index) == batch_size:
                self.capture(split.images[index], split.labels[index])
            if self.graph and len(index) == batch_size:
                torch.index_select(split.images, 0, index, out=self.images)
                torch.index_select(split.labels, 0, index, out=self.labels)
                self.graph()
            else:
                part = index.tensor_split(self.team.size)[self.team.rank]
                self.step(split.images[part], split.labels[part], self.team.size * len(part) / len(index))
            tick()
        return float(self.team.add(self.total)) / len(order)

    def variables(self) -> list[Tensor]:
        """All that a step changes."""
        moments = [value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        return [self.total, *self.network.state_dict().values(), *moments]

    def capture(self, images: Tensor, labels: Tensor) -> None:
        """Sets `graph`, if it does what `step` does; changes nothing else. Before the first step of an epoch."""
        self.images, self.labels, before = images, labels, [tensor.clone() for tensor in self.variables()]
        seed = torch.initial_seed()  # set just before this epoch, nothing has been drawn from it yet

        def rewind() -> None:
            for k, tensor in enumerate(self.variables()):  # the moments of a new optimiser begin at zero
                tensor.copy_(before[k]) if k < len(before) else tensor.zero_()
            torch.manual_seed(seed)

        def change(step: callable) -> tuple[Tensor, Tensor]:
            rewind()
            step()
            pairs = zip(self.network.parameters(), old_weights)
            weights, gradients = zip(*[((weight.detach() - old).flatten(), weight.grad.flatten()) for weight, old in pairs])
            return torch.cat(weights), torch.cat(gradients)

        old_weights = [weight.detach().clone() for weight in self.network.parameters()]
        with contextlib.suppress(RuntimeError):
            replay = record(lambda: self.step(self.images, self.labels))
            graph_weights, graph_gradients = change(replay)  # before the plain step, which gives the gradients new tensors
            weights, gradients = change(lambda: self.step(self.images, self.labels))
            # Adam turns a gradient that is zero but for rounding into a full step, hence the wide margin for weights
            if (graph_gradients - gradients).norm() <= 0.05 * gradients.norm() and \
                    (graph_weights - weights).norm() <= 0.3 * weights.norm():
                self.graph = replay
        rewind()
        if self.graph is None:
            self.wants_graph = False
            print("note: this GPU trains without CUDA graphs, which is slower", file=sys.stderr)


@torch.no_grad()
def evaluate(network: nn.Module, split: Split, data: Data, precision: str) -> tuple[float, float]:
    """Mean loss and accuracy in per cent. The batch size has no influence on them beyond rounding."""
    network.eval()
    loss = torch.zeros((), device=split.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    size = 10_000 if loss.device.type == "cuda" else 1_000
    for images, labels in zip(split.images.split(size), split.labels.split(size)):
        with autocast(labels.device, precision):
            outputs = network(normalise(images, data))
        loss += F.nll_loss(outputs.float(), labels, reduction="sum")
        correct += (outputs.argmax(1) == labels).sum()
    return float(loss) / len(split.labels), 100 * int(correct) / len(split.labels)
# <<< shared: training


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


# >>> shared: run (origin MNIST/mnist.py; edit there, then: make sync)
class Run:
    """One network, head and seed: its weights, optimiser, rate, log and checkpoint."""

    def __init__(self, head: str, seed: int, data: Data, options: argparse.Namespace, team: Team):
        recipe, device = RECIPES[options.network], team.device
        self.recipe, self.options, self.team, self.device, self.data, self.seed = recipe, options, team, device, data, seed
        corrected = options.protocol == "corrected"
        self.rule = (recipe.corrected_rule if corrected else recipe.spinal_rule if head == "spinal" else None) or recipe.rule
        self.watched = "heldout" if corrected else "test"  # the split that is evaluated after each epoch
        self.selection = "heldout" if corrected else recipe.selection
        layers, width = recipe.fc if head == "fc" else (options.layers or recipe.spinal[0], options.width or recipe.spinal[1])
        self.row = (options.network, head, layers, width)
        self.label = head if head == "fc" else f"spinal{layers}x{width}"
        torch.manual_seed(seed_of(seed, "weights"))
        spinal = {"layers": options.layers, "width": options.width} if head == "spinal" else {}
        try:
            network = build_network(options.network, head, protocol=options.protocol, fc_dropout=options.fc_dropout, **spinal)
        except ValueError as error:
            raise UserError(str(error)) from None
        if 1 in (options.batch_size, len(data.train.labels) % options.batch_size) and \
                any(isinstance(module, nn.BatchNorm1d) for module in network.modules()):
            raise UserError(f"batches of {options.batch_size} leave one of {len(data.train.labels)} training images alone, and "
                            "batch norm cannot train on one image: choose another --batch-size or --limit")
        if 0 < len(data.train.labels) % options.batch_size < team.size or options.batch_size < team.size:
            raise UserError(f"batches of {options.batch_size} cannot be cut into {team.size} parts: choose fewer processes, or "
                            "another --batch-size")
        if team.size > 1:
            share_batch_norm(network)
        self.start = self.describe(network)
        self.name = self.start["run"]
        self.log = RunLog(options.results_dir / "logs" / SCRIPT, self.name)
        self.checkpoint = Checkpoint(options.results_dir / "checkpoints" / SCRIPT / f"{self.name}.pt")
        self.network = network.to(device, memory_format=torch.channels_last)  # the same numbers, convolutions are faster
        self.optimizer = build_optimizer(self.network, recipe, options.lr)
        self.trainer = Trainer(self.network, self.optimizer, data, options.precision, team)
        self.state = {"epoch": 0, "rate": options.lr, "best_epoch": 0, "best": -1.0, "last": -1.0, "seconds": 0.0,
                      "diverged": False}
        self.best_weights: dict | None = None
        self.finished = team.first(self.log.path.exists) and not options.overwrite
        if self.finished and not self.log.part.exists():  # a process was killed between its last two acts
            self.checkpoint.remove()

    def describe(self, network: nn.Module) -> dict:
        """The first line of the log: everything that decides the numbers, and where they come from."""
        options, recipe, (name, head, layers, width) = self.options, self.recipe, self.row
        dropout = published_dropout(name, head, options.protocol) if options.fc_dropout is None else options.fc_dropout
        departures = {"e": ("epochs", recipe.epochs), "b": ("batch_size", recipe.batch_size),
                      "lr": ("lr", recipe.learning_rate), "limit": ("limit", None), "drop": ("fc_dropout", None),
                      "": ("precision", default_precision(self.device, recipe))}
        departures |= {flag.lstrip("-"): (flag.lstrip("-"), keywords["default"]) for flag, keywords in EXTRA_OPTIONS.items()}
        changed = {key: option for key, (option, default) in departures.items() if getattr(options, option) != default}
        parts = [name, self.label, options.protocol, *(f"{key}{getattr(options, option)}" for key, option in changed.items())]
        if not self.data.facts["official"]:
            parts.append("data" + self.data.facts["sha256"][:8])
        settings = {
            "dataset": DATASET, "network": name, "head": head, "layers": layers, "width": width, "protocol": options.protocol,
            "epochs": options.epochs, "batch_size": options.batch_size, "learning_rate": options.lr,
            "optimizer": recipe.optimizer + f" momentum {recipe.momentum}" * (recipe.optimizer == "SGD"),
            "rate_rule": str(self.rule), "augmentation": list(recipe.augment), "mean": self.data.norm[0],
            "std": self.data.norm[1], "fc_dropout": dropout, "selection": self.selection, "limit": options.limit,
            "precision": options.precision,
            **{flag.lstrip("-"): getattr(options, flag.lstrip("-")) for flag in EXTRA_OPTIONS}}
        sample = torch.zeros(1, *self.data.train.images.shape[1:])
        return {"event": "start", "schema": 1, "script": SCRIPT, "run": "-".join(parts) + f"-s{self.seed}", "seed": self.seed,
                "settings": settings, "departures": sorted(changed.values()),
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "fc_multiplications": count_fc_multiplications(network, sample), "data": self.data.facts,
                "provenance": provenance(self.device) | ({"processes": self.team.size} if self.team.size > 1 else {})}

    def begin(self) -> None:
        """Opens the log; goes on from the checkpoint if there is one of the same run."""
        saved = self.checkpoint.load(self.device)
        done = saved["state"]["epoch"] if saved and saved.get("run") == self.name else 0
        if not self.team.first(lambda: self.log.open(self.start, done)):
            return
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state, self.best_weights = saved["state"], saved["best_weights"]

    def train_epoch(self, epoch: int, split: Split, order: Tensor, tick: callable) -> None:
        """One epoch: train, evaluate, log, choose the next rate, save."""
        began, state, data = time.monotonic(), self.state, self.data
        rank = [self.team.rank] if self.team.rank else []  # another mask for the part of another process
        torch.manual_seed(seed_of(self.seed, "dropout", epoch, *rank))
        set_rate(self.optimizer, state["rate"])
        loss = self.trainer.epoch(split, order, self.options.batch_size, tick)
        watched = data.heldout if self.watched == "heldout" else data.test
        watched_loss, accuracy = self.team.first(lambda: evaluate(self.network, watched, data, self.options.precision))
        line = {"event": "epoch", "epoch": epoch, "learning_rate": rounded(state["rate"]), "train_loss": rounded(loss),
                f"{self.watched}_loss": rounded(watched_loss), f"{self.watched}_accuracy_pct": rounded(accuracy),
                "seconds": rounded(time.monotonic() - began, 4)}
        self.team.first(lambda: self.log.write(line))
        improved = self.rule.improves(accuracy, state["best"])
        if accuracy > state["best"]:
            state.update(best=accuracy, best_epoch=epoch)
            if self.selection == "heldout":  # Q26: a copy, for the one reading of the test set
                self.best_weights = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
        generator = torch.Generator().manual_seed(seed_of(self.seed, "rate", self.label, epoch))
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        rate = self.rule.next(epoch, improved, state["rate"], self.options.lr, uniform)
        if self.rule.renew and epoch > self.rule.after:
            for moments in self.optimizer.state.values():
                for moment in moments.values():
                    moment.zero_()  # in place: a graph knows where they are
        state.update(epoch=epoch, rate=rate, last=accuracy, loss=watched_loss, diverged=not math.isfinite(loss),
                     seconds=state["seconds"] + time.monotonic() - began)
        self.team.first(lambda: self.checkpoint.save({
            "run": self.name, "state": state, "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
            "best_weights": self.best_weights}))

    def progress(self) -> str:
        """How it stands after the last epoch, for the terminal."""
        state = self.state
        accuracy = f"loss {state['loss']:.4f}, {self.watched} {state['last']:.2f} %, " if state["epoch"] else ""
        return f"{accuracy}rate {state['rate']:.2g}"

    def end(self) -> None:
        """Reads the test set where that has not been done, and closes the log."""
        state, last, selected_epoch = self.state, self.state["last"], self.state["best_epoch"]
        selected = state["best"]
        if self.selection == "heldout":
            test = lambda: evaluate(self.network, self.data.test, self.data, self.options.precision)[1]
            last = self.team.first(test)
            self.network.load_state_dict(self.best_weights)
            selected = self.team.first(test)
        elif self.selection == "last":
            selected_epoch, selected = state["epoch"], last
        record = {"event": "end", "outcome": "diverged" if state["diverged"] else "finished", "epochs": state["epoch"],
                  "best_epoch": state["best_epoch"], f"best_{self.watched}_accuracy_pct": rounded(state["best"]),
                  "last_test_accuracy_pct": rounded(last), "selected_epoch": selected_epoch,
                  "selected_test_accuracy_pct": rounded(selected), "seconds": rounded(state["seconds"]),
                  "peak_memory_bytes": peak_memory(self.device)}
        if state["diverged"]:
            record["diverged_epoch"] = state["epoch"]
        self.team.first(lambda: self.log.finish(record))
        self.team.first(self.checkpoint.remove)
        self.finished = True

    def result(self) -> str:
        """One line from the finished log: this run's number beside the paper's."""
        lines = self.log.path.read_text(encoding="utf-8").splitlines()
        start, end = json.loads(lines[0]), json.loads(lines[-1])
        _, head, layers, width = self.row
        text = f"{DATASET} {self.row[0]} {'FC' if head == 'fc' else 'Spinal'} {layers}x{width}, {self.options.protocol}, " \
               f"seed {self.seed}: {end['selected_test_accuracy_pct']:.2f} % " \
               f"(epoch {end['selected_epoch']} of {end['epochs']})"
        if end["outcome"] == "diverged":
            text += f", diverged in epoch {end['diverged_epoch']}"
        if self.row in PAPER:
            text += "; paper: average {:.2f}, best {:.2f} of 10 runs".format(*PAPER[self.row])
            unlike = start["departures"] + ["data"] * (not start["data"]["official"])
            unlike += ["protocol"] * (self.options.protocol == "corrected")
            text += f" (with other {', '.join(unlike)})" if unlike else ""
        return f"{text}. Log: {self.log.path}"


def train_together(runs: list[Run], options: argparse.Namespace) -> None:
    """Trains all runs of one seed, epoch by epoch, on the same batches in the same order with the same augmentation."""
    data, seed = runs[0].data, runs[0].seed
    for run in runs:
        run.begin()
    train, batches = data.train, math.ceil(len(data.train.labels) / options.batch_size)
    first = min(run.state["epoch"] for run in runs)
    done = sum(run.state["epoch"] for run in runs) * batches
    bar = tqdm(total=options.epochs * len(runs) * batches, initial=done, unit="batch", leave=False, dynamic_ncols=True,
               disable=None if not options.quiet else True)
    try:
        for epoch in range(first + 1, options.epochs + 1):
            began = time.monotonic()
            generator = torch.Generator().manual_seed(seed_of(seed, "data", epoch))
            order = torch.randperm(len(train.labels), generator=generator).to(train.labels.device)
            split = Split(augment(train.images, RECIPES[options.network].augment, generator), train.labels)
            active = [run for run in runs if run.state["epoch"] == epoch - 1 and not run.state["diverged"]]
            for run in active:
                bar.set_postfix_str(f"{run.label}, epoch {epoch}, {run.progress()}")
                run.train_epoch(epoch, split, order, bar.update)
            if active and not options.quiet:
                seconds = time.monotonic() - began
                parts = [f"{run.label}: {run.progress()}" for run in active]
                bar.write(f"seed {seed}  epoch {epoch}/{options.epochs}  {' | '.join(parts)}  {seconds:.1f} s, "
                          f"{seconds * (options.epochs - epoch):.0f} s left", file=sys.stdout)
    finally:
        bar.close()
    for run in runs:
        run.end()
# <<< shared: run


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


# >>> shared: command_line (origin MNIST/mnist.py; edit there, then: make sync)
def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with the published values filled in. Raises UserError."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--network", choices=RECIPES, default="cnn", help="default: cnn")
    parser.add_argument("--head", choices=("fc", "spinal", "both"), help="default: both, side by side on the same batches")
    parser.add_argument("--layers", type=whole(1), metavar="N", help="hidden layers of the Spinal head; default: as published")
    parser.add_argument("--width", type=whole(1), metavar="N", help="neurons of each of them; default: as published")
    parser.add_argument("--fc-dropout", type=number(0, 1), metavar="P",
                        help="dropout before the output layer of either head, to tell its effect from the head's (Q5)")
    common_options(parser)
    parser.add_argument("--data-dir", type=folder, default=Path("data"), metavar="DIR", help="default: data")
    parser.add_argument("--precision", choices=("fp32", "bf16"),
                        help="default: bf16 where that is faster and proved to be as accurate, else fp32")
    parser.add_argument("--limit", type=whole(2), metavar="N", help="only the first N training and test images: a smoke run")
    parser.add_argument("--no-download", action="store_true", help="use the data that are there")
    parser.add_argument("--fetch-only", action="store_true", help="fetch and check the data, train nothing")
    for flag, keywords in EXTRA_OPTIONS.items():
        parser.add_argument(flag, **keywords)
    options = parser.parse_args(argv)
    recipe = RECIPES[options.network]
    options.head = options.head or ("both" if recipe.fc else "spinal")
    if options.head != "spinal" and not recipe.fc:
        raise UserError(f"{options.network} has no FC head: leave --head out, or choose another --network")
    if options.head == "fc" and (options.layers or options.width):
        raise UserError("--layers and --width belong to the Spinal head: choose --head spinal or both with them")
    options.epochs = options.epochs or recipe.epochs
    options.batch_size = options.batch_size or recipe.batch_size
    options.lr = options.lr or recipe.learning_rate
    return options


def work(argv: list[str] | None) -> None:
    """Everything that the command line asks for."""
    options = parse_arguments(argv)
    team = Team(options)
    device, options.quiet = team.device, options.quiet or team.rank > 0
    if device.type == "cpu" and RECIPES[options.network].one_thread:
        torch.set_num_threads(1)
    options.precision = options.precision or default_precision(device, RECIPES[options.network])
    if device.type == "cuda":  # fp32 is fp32; what bf16 leaves in fp32 may use TF32
        torch.set_float32_matmul_precision("high" if options.precision == "bf16" else "highest")
        torch.backends.cudnn.allow_tf32 = options.precision == "bf16"
    if team.size > 1:
        team.first(lambda: read_arrays(options) and None)  # one process downloads
    data = load_data(options, device)
    if not data.facts["official"] and not options.quiet:
        print(f"note: {data.facts['complete_train']:,} + {data.facts['complete_test']:,} images instead of {DATASET}'s "
              f"{TRAIN_IMAGES:,} + {TEST_IMAGES:,}: logged under a name of their own, never as the paper's row")
    if options.fetch_only:
        return
    for seed in range(options.seed, options.seed + options.runs):
        runs = [Run(head, seed, data, options, team) for head in ("fc", "spinal") if options.head in (head, "both")]
        unfinished = [run for run in runs if not run.finished]
        if unfinished:
            train_together(unfinished, options)
        for run in runs if team.rank == 0 else ():
            print(run.result() if run in unfinished else f"already finished: {run.result()}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 user's mistake, 130 Ctrl-C, 143 SIGTERM."""
    return guarded(together(work), argv)


if __name__ == "__main__":
    sys.exit(main())
# <<< shared: command_line
