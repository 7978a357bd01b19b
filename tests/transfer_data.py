"""Tiny data sets in the on-disk formats of the sets that the transfer scripts read; a corner pixel tells the class."""
import gzip
import pickle
import struct

import numpy as np
import torchvision
from PIL import Image
from scipy.io import savemat


def pixels(label: int, k: int, shape=(12, 10, 3)) -> np.ndarray:
    """One image (H, W, 3) or (H, W) whose top left pixel is (label, k, ...)."""
    image = np.random.default_rng((label, k)).integers(0, 256, shape, dtype=np.uint8)
    image[0, 0] = (label, k, 7)[: shape[2]] if len(shape) == 3 else label
    return image


def save(path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def stacked(classes: int, per_class: int, shape) -> tuple[np.ndarray, np.ndarray]:
    """Images class after class, (N, *shape), and labels."""
    labels = np.repeat(np.arange(classes), per_class)
    return np.stack([pixels(label, k % per_class, shape) for k, label in enumerate(labels)]), labels


def cifar10(folder):
    base = folder / "cifar-10-batches-py"
    base.mkdir()
    for index, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        images, labels = stacked(10, 1, (32, 32, 3))
        images[:, 0, 0, 1] = index
        content = {"data": images.transpose(0, 3, 1, 2).reshape(10, -1), "labels": labels.tolist()}
        (base / name).write_bytes(pickle.dumps(content))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(k) for k in range(10)]}))


def cifar100(folder):
    base = folder / "cifar-100-python"
    base.mkdir()
    for name in ("train", "test"):
        images, labels = stacked(100, 1, (32, 32, 3))
        content = {"data": images.transpose(0, 3, 1, 2).reshape(100, -1), "fine_labels": labels.tolist()}
        (base / name).write_bytes(pickle.dumps(content))
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(k) for k in range(100)]}))


def svhn(folder):
    (folder / "svhn").mkdir()
    for name in ("train", "test"):
        images, labels = stacked(10, 2, (32, 32, 3))
        savemat(folder / "svhn" / f"{name}_32x32.mat",
                {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)})


def stl10(folder):
    base = folder / "stl10_binary"
    base.mkdir()
    for name in ("train", "test"):
        images, labels = stacked(10, 2, (96, 96, 3))
        (base / f"{name}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())  # column after column
        (base / f"{name}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    (base / "class_names.txt").write_text("\n".join("abcdefghij"))


def idx(name):
    def write(folder):
        base = folder / name / "raw"
        base.mkdir(parents=True)
        for part, per_class in (("train", 3), ("t10k", 1)):
            images, labels = stacked(10, per_class, (28, 28))
            with gzip.open(base / f"{part}-images-idx3-ubyte.gz", "wb") as file:
                file.write(struct.pack(">IIII", 2051, len(images), 28, 28) + images.tobytes())
            with gzip.open(base / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
                file.write(struct.pack(">II", 2049, len(labels)) + labels.astype(np.uint8).tobytes())
            for kind in ("images-idx3", "labels-idx1"):  # torchvision reads the unpacked files
                packed = base / f"{part}-{kind}-ubyte.gz"
                (base / f"{part}-{kind}-ubyte").write_bytes(gzip.decompress(packed.read_bytes()))
    return write


def tree(*parts, classes, suffix=".png", per_class=2, names="class{:03}"):
    def write(folder):
        for part in parts:
            for label in range(classes):
                for k in range(per_class):
                    save(folder / part / names.format(label) / f"image_{k + 1:04}{suffix}", pixels(label, k))
    return write


def caltech101(folder):
    base = "caltech101/101_ObjectCategories"
    tree(base, classes=101, suffix=".jpg", per_class=6)(folder)
    save(folder / base / "BACKGROUND_Google" / "image_0001.jpg", pixels(0, 0))


def flowers102(folder):
    base, count = folder / "flowers-102", 102 * 5
    labels = np.arange(count) % 102 + 1
    for number, label in enumerate(labels, 1):
        save(base / "jpg" / f"image_{number:05}.jpg", pixels(label - 1, number % 256))
    savemat(base / "imagelabels.mat", {"labels": labels[None]})
    numbers = np.arange(1, count + 1)[None]
    savemat(base / "setid.mat", {"trnid": numbers[:, :100], "valid": numbers[:, 100:200], "tstid": numbers[:, 200:]})


def stanford_cars(folder):
    base = folder / "stanford_cars"
    kind = [("class", "O"), ("fname", "O")]
    for part, file in (("cars_train", "devkit/cars_train_annos.mat"), ("cars_test", "cars_test_annos_withlabels.mat")):
        for label in range(196):
            save(base / part / f"{label + 1:05}.jpg", pixels(label, 0))
        annotations = np.array([[(label + 1, f"{label + 1:05}.jpg") for label in range(196)]], dtype=kind)
        (base / "devkit").mkdir(exist_ok=True)
        savemat(base / file, {"annotations": annotations})
    names = np.array([f"car {k}" for k in range(196)], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})


WRITERS = {
    "tl_cifar10": cifar10, "tl_cifar100": cifar100, "tl_svhn": svhn, "tl_stl10": stl10, "tl_mnist": idx("MNIST"),
    "tl_fashion_mnist": idx("FashionMNIST"), "tl_caltech101": caltech101, "tl_oxford_flowers102": flowers102,
    "tl_stanford_cars": stanford_cars,
    "tl_bird225": tree("bird225/train", "bird225/valid", "bird225/test", classes=225, suffix=".jpg"),
    "tl_cinic10": tree("cinic10/train", "cinic10/valid", "cinic10/test", classes=10, per_class=4),
    "tl_fruits360": tree("fruits-360/Training", "fruits-360/Test", classes=131, suffix=".jpg"),
    "tl_intel_image": tree("intel-image/seg_train/seg_train", "intel-image/seg_test/seg_test", classes=6, suffix=".jpg",
                           per_class=4),
    "tl_monkey10": tree("10-monkey-species/training", "10-monkey-species/validation/validation", classes=10,
                        names="n{}", per_class=3),
    "tl_hymenoptera": tree("hymenoptera_data/train", "hymenoptera_data/val", classes=2, suffix=".jpg", per_class=9),
}
SIZES = {  # images in each part of what the writers write: train, heldout, test
    "tl_cifar10": (50, 0, 10), "tl_cifar100": (100, 0, 100), "tl_svhn": (20, 0, 20), "tl_stl10": (20, 0, 20),
    "tl_mnist": (27, 3, 10), "tl_fashion_mnist": (27, 3, 10), "tl_caltech101": (430, 57, 119),
    "tl_oxford_flowers102": (408, 0, 51),
    "tl_stanford_cars": (196, 0, 196), "tl_bird225": (450, 450, 450), "tl_cinic10": (40, 40, 40),
    "tl_fruits360": (262, 0, 262),
    "tl_intel_image": (24, 0, 24), "tl_monkey10": (30, 0, 30), "tl_hymenoptera": (18, 0, 18),
}


def without_checksums(source):
    """torchvision's class, which takes data of other content than the official."""
    if not hasattr(source, "_check_integrity") or source is torchvision.datasets.MNIST:
        return source
    meta = {"meta": source.meta | {"md5": None}} if hasattr(source, "meta") else {}
    return type(source.__name__, (source,), {"_check_integrity": lambda self: True, **meta})
