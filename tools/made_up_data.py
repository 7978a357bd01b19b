"""Small made-up data sets in the files that the scripts read, so that they run without a download.

    python tools/made_up_data.py FOLDER SCRIPT...    for example: made MNIST/mnist CIFAR/cifar10

Each class has a mark of its own that a network can learn (a bright row, or the colour of a corner);
all else is noise. Nothing here has the number of images of an official set, so that no run on it
can be taken for a row of the paper: its logs have `data` and a hash in their names.
"""

from __future__ import annotations

import gzip
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import torchvision
from PIL import Image
from scipy.io import savemat

SETS = {  # MNIST, EMNIST: folder of the files, their names, classes, the first label in the files
    "MNIST/mnist": ("MNIST", "{part}-{kind}", 10, 0),
    "MNIST/fashion_mnist": ("FashionMNIST", "{part}-{kind}", 10, 0),
    "MNIST/kmnist": ("KMNIST", "{part}-{kind}", 10, 0),
    "MNIST/qmnist": ("QMNIST", "qmnist-{part}-{kind}", 10, 0),
    "EMNIST/emnist_digits": ("EMNIST", "emnist-digits-{part}-{kind}", 10, 0),
    "EMNIST/emnist_letters": ("EMNIST", "emnist-letters-{part}-{kind}", 26, 1),
    "EMNIST/emnist_balanced": ("EMNIST", "emnist-balanced-{part}-{kind}", 47, 0),
}


# ---- MNIST and EMNIST ---------------------------------------------------------------------------
def data_of(script: str) -> str:
    """The script whose data this one reads: arch2_mnist reads those of mnist."""
    return script.replace("arch2_", "")


def files_of(script: str) -> list[str]:
    """The files of a script, below the data folder: of training images, labels, test, labels."""
    folder, name, *_ = SETS[data_of(script)]
    parts = ("train", "test") if folder in ("QMNIST", "EMNIST") else ("train", "t10k")
    labels = "labels-idx2-int" if folder == "QMNIST" else "labels-idx1-ubyte"
    files = []
    for part in parts:
        for kind in ("images-idx3-ubyte", labels):
            files.append(f"{folder}/raw/{name.format(part=part, kind=kind)}")
    return files


def idx(array: numpy.ndarray) -> bytes:
    """The IDX format: two zero bytes, type (8: byte, 12: 32 bits), dimensions, content."""
    kind, content = (12, array.astype(">i4")) if array.ndim == 2 else (8, array.astype("u1"))
    head = struct.pack(f">4B{array.ndim}I", 0, 0, kind, array.ndim, *array.shape)
    return head + content.tobytes()


def pictures(script: str, train: int = 60, test: int = 60) -> list[numpy.ndarray]:
    """Training images (N, 28, 28) and labels (N,) as in the files, test images and labels.

    They differ from script to script. Each class has a bright row of its own.
    """
    script = data_of(script)
    *_, classes, first = SETS[script]
    random = numpy.random.default_rng(sorted(SETS).index(script))
    arrays = []
    for count in (train, test):
        labels = random.permutation(count) % classes
        images = random.integers(0, 128, (count, 28, 28))
        images[numpy.arange(count), labels % 28] = 255
        arrays += [images.astype("u1"), labels + first]
    return arrays


def write_data(
    folder: Path, *scripts: str, train: int = 60, test: int = 60, packed: bool = False
) -> Path:
    """The data of these scripts (none: of all) below `folder`. packed: with the .gz files, too."""
    for script in scripts or SETS:
        for name, array in zip(files_of(script), pictures(script, train, test), strict=True):
            if name.endswith("idx2-int"):  # QMNIST: eight numbers an image, the first is the digit
                array = numpy.stack([array, *numpy.full((7, len(array)), 77)], 1)
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(idx(array))
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    return folder


# ---- CIFAR and transfer -------------------------------------------------------------------------
def pixels(label: int, k: int, shape: tuple = (12, 10, 3)) -> numpy.ndarray:
    """One image (H, W, 3) or (H, W) whose top left pixel is (label, k, ...)."""
    image = numpy.random.default_rng((label, k)).integers(0, 256, shape, dtype="u1")
    image[0, 0] = (label, k, 7)[: shape[2]] if len(shape) == 3 else label
    return image


def save(path: Path, image: numpy.ndarray) -> None:
    """Writes an image in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def stacked(classes: int, per_class: int, shape: tuple) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Images class after class, (N, *shape), and labels (N,)."""
    labels = numpy.repeat(numpy.arange(classes), per_class)
    images = [pixels(label, k % per_class, shape) for k, label in enumerate(labels)]
    return numpy.stack(images), labels


def cifar10(folder: Path) -> None:
    """CIFAR-10 as torchvision reads it: 50 training and 10 test images."""
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for index, name in enumerate(names):
        images, labels = stacked(10, 1, (32, 32, 3))
        images[:, 0, 0, 1] = index
        content = {"data": images.transpose(0, 3, 1, 2).reshape(10, -1), "labels": labels.tolist()}
        (base / name).write_bytes(pickle.dumps(content))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def cifar100(folder: Path) -> None:
    """CIFAR-100 as torchvision reads it: one training and one test image of each class."""
    base = folder / "cifar-100-python"
    base.mkdir(parents=True)
    images, labels = stacked(100, 1, (32, 32, 3))
    rows = images.transpose(0, 3, 1, 2).reshape(100, -1)
    for name in ("train", "test"):
        content = {"data": rows, "fine_labels": labels.tolist()}
        (base / name).write_bytes(pickle.dumps(content))
    names = [f"class {k}" for k in range(100)]
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))


def svhn(folder: Path) -> None:
    """SVHN: label 10 stands for the digit 0."""
    (folder / "svhn").mkdir(parents=True)
    for name in ("train", "test"):
        images, labels = stacked(10, 2, (32, 32, 3))
        labels = numpy.where(labels == 0, 10, labels)[:, None].astype("u1")
        content = {"X": images.transpose(1, 2, 3, 0), "y": labels}
        savemat(folder / "svhn" / f"{name}_32x32.mat", content)


def stl10(folder: Path) -> None:
    """STL-10: pixels column after column, labels from 1."""
    base = folder / "stl10_binary"
    base.mkdir(parents=True)
    for name in ("train", "test"):
        images, labels = stacked(10, 2, (96, 96, 3))
        (base / f"{name}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (base / f"{name}_y.bin").write_bytes((labels + 1).astype("u1").tobytes())
    (base / "class_names.txt").write_text("\n".join("abcdefghij"))


def greyscale(name: str) -> Callable:
    """What writes MNIST or Fashion-MNIST for a transfer script: 30 and 10 images."""

    def write(folder: Path) -> None:
        base = folder / name / "raw"
        base.mkdir(parents=True)
        for part, per_class in (("train", 3), ("t10k", 1)):
            images, labels = stacked(10, per_class, (28, 28))
            (base / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
            (base / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))

    return write


def folders(
    *parts: str, classes: int, suffix: str = ".jpg", per_class: int = 2, names: str = "class{:03}"
) -> Callable:
    """What writes a folder of images for each class of each part."""

    def write(folder: Path) -> None:
        for part in parts:
            for label in range(classes):
                for k in range(per_class):
                    file = folder / part / names.format(label) / f"image_{k + 1:04}{suffix}"
                    save(file, pixels(label, k))

    return write


def caltech101(folder: Path) -> None:
    """Caltech-101 with its folder of backgrounds, which is no class."""
    base = "caltech101/101_ObjectCategories"
    folders(base, classes=101, per_class=6)(folder)
    save(folder / base / "BACKGROUND_Google" / "image_0001.jpg", pixels(0, 0))


def flowers102(folder: Path) -> None:
    """Oxford 102 Flower: labels from 1, and the numbers of the images of each part."""
    base = folder / "flowers-102"
    count = 102 * 5
    labels = numpy.arange(count) % 102 + 1
    for number, label in enumerate(labels, 1):
        save(base / "jpg" / f"image_{number:05}.jpg", pixels(label - 1, number % 256))
    savemat(base / "imagelabels.mat", {"labels": labels[None]})
    numbers = numpy.arange(1, count + 1)[None]
    parts = {"trnid": numbers[:, :100], "valid": numbers[:, 100:200], "tstid": numbers[:, 200:]}
    savemat(base / "setid.mat", parts)


def stanford_cars(folder: Path) -> None:
    """Stanford Cars: one training and one test image of each of 196 classes."""
    base = folder / "stanford_cars"
    kind = [("class", "O"), ("fname", "O")]
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    (base / "devkit").mkdir(parents=True)
    for part, file in files.items():
        rows = []
        for label in range(196):
            name = f"{label + 1:05}.jpg"
            save(base / f"cars_{part}" / name, pixels(label, 0))
            rows.append((label + 1, name))
        savemat(base / file, {"annotations": numpy.array([rows], dtype=kind)})
    names = numpy.array([f"car {k}" for k in range(196)], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})


def table(folder: Path) -> None:
    """table.csv: 80 rows of six inputs and three targets."""
    folder.mkdir(parents=True, exist_ok=True)
    random = numpy.random.default_rng(0)
    inputs = random.normal(size=(80, 6))
    targets = inputs @ random.normal(size=(6, 3)) + 0.1 * random.normal(size=(80, 3))
    rows = numpy.concatenate([inputs, targets], 1)
    header = "a,b,c,d,e,f,x,y,z"
    numpy.savetxt(folder / "table.csv", rows, "%.6f", ",", header=header, comments="")


INTEL = ("intel-image/seg_train/seg_train", "intel-image/seg_test/seg_test")
MONKEYS = ("10-monkey-species/training", "10-monkey-species/validation/validation")
WRITERS = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "tl_cifar10": cifar10,
    "tl_cifar100": cifar100,
    "tl_svhn": svhn,
    "tl_stl10": stl10,
    "tl_mnist": greyscale("MNIST"),
    "tl_fashion_mnist": greyscale("FashionMNIST"),
    "tl_caltech101": caltech101,
    "tl_oxford_flowers102": flowers102,
    "tl_stanford_cars": stanford_cars,
    "tl_bird225": folders("bird225/train", "bird225/valid", "bird225/test", classes=225),
    "tl_cinic10": folders(
        "cinic10/train", "cinic10/valid", "cinic10/test", classes=10, per_class=4, suffix=".png"
    ),
    "tl_fruits360": folders("fruits-360/Training", "fruits-360/Test", classes=131),
    "tl_intel_image": folders(*INTEL, classes=6, per_class=4),
    "tl_monkey10": folders(*MONKEYS, classes=10, per_class=3, names="n{}", suffix=".png"),
    "tl_hymenoptera": folders(
        "hymenoptera_data/train", "hymenoptera_data/val", classes=2, per_class=9
    ),
    "tabular": table,
}
CHECKED = ["CIFAR10", "CIFAR100", "SVHN", "STL10", "Flowers102", "StanfordCars", "Caltech101"]


def write_for(script: str, folder: Path) -> None:
    """What this script (MNIST/mnist, ...) reads, below `folder`; nothing if it reads nothing."""
    name = Path(script).name
    if data_of(script) in SETS:
        write_data(folder, script)
    elif name in WRITERS:
        WRITERS[name](folder)


def is_whole(dataset: object) -> bool:
    """What torchvision's data sets ask: are the files the official ones?"""
    return True


def without_checksums(source: type) -> type:
    """torchvision's class, which now takes data of other content than the official."""
    members = {"_check_integrity": is_whole}
    if hasattr(source, "meta"):
        members["meta"] = source.meta | {"md5": None}
    return type(source.__name__, (source,), members)


def accept_any_content() -> None:
    """From now on torchvision's classes in this process take made-up data."""
    for name in CHECKED:
        source = getattr(torchvision.datasets, name)
        setattr(torchvision.datasets, name, without_checksums(source))


def main(argv: list[str]) -> int:
    """Exit status: 0 written, 2 a mistake of the user."""
    if len(argv) < 2:
        print("error: python tools/made_up_data.py FOLDER SCRIPT...", file=sys.stderr)
        return 2
    for script in argv[1:]:
        write_for(script, Path(argv[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
