"""Small image sets in the files that torchvision reads, for the tests of the scripts of MNIST/ and EMNIST/."""

import gzip
import struct
from pathlib import Path

import torch
from torch import Tensor

SETS = {  # script: folder of its files, their names, classes of the labels, the first label that is delivered
    "MNIST/mnist": ("MNIST", "{part}-{kind}", 10, 0),
    "MNIST/fashion_mnist": ("FashionMNIST", "{part}-{kind}", 10, 0),
    "MNIST/kmnist": ("KMNIST", "{part}-{kind}", 10, 0),
    "MNIST/qmnist": ("QMNIST", "qmnist-{part}-{kind}", 10, 0),
    "EMNIST/emnist_digits": ("EMNIST", "emnist-digits-{part}-{kind}", 10, 0),
    "EMNIST/emnist_letters": ("EMNIST", "emnist-letters-{part}-{kind}", 26, 1),
    "EMNIST/emnist_balanced": ("EMNIST", "emnist-balanced-{part}-{kind}", 47, 0),
}
ARCH2 = {  # script: that of the same data
    "MNIST/arch2_mnist": "MNIST/mnist",
    "MNIST/arch2_fashion_mnist": "MNIST/fashion_mnist",
    "MNIST/arch2_kmnist": "MNIST/kmnist",
    "MNIST/arch2_qmnist": "MNIST/qmnist",
    "EMNIST/arch2_emnist_digits": "EMNIST/emnist_digits",
}
KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def files_of(script: str) -> list[str]:
    """Names of the files of a script's data, below the data folder: training images and labels, test images, labels."""
    folder, name, *_ = SETS[ARCH2.get(script, script)]
    if folder == "QMNIST":
        parts, kinds = ("train", "test"), ("images-idx3-ubyte", "labels-idx2-int")
    else:
        parts, kinds = ("train", "test" if folder == "EMNIST" else "t10k"), KINDS
    return [f"{folder}/raw/{name.format(part=part, kind=kind)}" for part in parts for kind in kinds]


def idx(array: Tensor) -> bytes:
    """The IDX format: two zero bytes, type (8: byte, 12: 32 bits, the highest first), dimensions, content."""
    kind, content = (8, array.to(torch.uint8)) if array.ndim != 2 else (12, array.to(torch.int32))
    raw = content.contiguous().numpy()
    return (
        struct.pack(f">4B{array.ndim}I", 0, 0, kind, array.ndim, *array.shape)
        + raw.astype(raw.dtype.newbyteorder(">")).tobytes()
    )


def pictures(script: str, train: int = 60, test: int = 30) -> list[Tensor]:
    """Training images (N, 28, 28) and labels as delivered, test images and labels; other ones for each script.
    Each class has a bright row of its own, so that a network can learn it; all else is noise up to the border.
    """
    script = ARCH2.get(script, script)
    *_, classes, first = SETS[script]
    generator = torch.Generator().manual_seed(sorted(SETS).index(script))
    arrays = []
    for count in (train, test):
        labels = torch.randperm(count, generator=generator) % classes
        images = torch.randint(0, 128, (count, 28, 28), generator=generator)
        images[torch.arange(count), labels % 28] = 255
        arrays += [images.to(torch.uint8), labels + first]
    return arrays


def write_data(folder: Path, *scripts: str, train: int = 60, test: int = 30, packed: bool = False) -> Path:
    """The data of these scripts (none: of all) below `folder`; packed: as they are downloaded, with .gz."""
    for script in scripts or SETS:
        for name, array in zip(files_of(script), pictures(script, train, test)):
            if name.endswith("idx2-int"):  # QMNIST has eight numbers for an image, the first is the digit
                array = torch.stack([array, *torch.full((7, len(array)), 77)], 1)
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(idx(array))
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    return folder
