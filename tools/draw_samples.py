"""What augmentation does to the images: python tools/draw_samples.py --data-dir data [--cifar-dir data]

Draws results/reference/figures/augmentation_samples.svg and .png: for each data set that is there, eight training
images above, and below them the same images as the first epoch of seed 0 sees them (published recipe). Sets that are
not there are named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SETS = (
    ("MNIST/mnist", "vgg5", ""),
    ("MNIST/fashion_mnist", "vgg5", ""),
    ("MNIST/kmnist", "vgg5", "subset"),
    ("EMNIST/emnist_digits", "vgg5", "subset"),
    ("EMNIST/emnist_letters", "vgg5", "subset"),
    ("CIFAR/cifar10", "vgg19", ""),
)
COUNT = 8


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def before_and_after(script, network: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor, str]:
    """(COUNT, C, H, W) uint8 each, and the name of the set."""
    options, recipe = script.parse_arguments(
        ["--network", network, "--data-dir", str(folder), "--no-download", "--quiet"]
    )
    data = script.load_data(options, recipe, torch.device("cpu"))
    images, labels = data.train
    generator = torch.Generator().manual_seed(script.seed_of(0, "data", 1))
    torch.randperm(len(labels), generator=generator)  # the order of the batches, which is drawn first
    views = script.augment(images[:2_000], recipe["augmentation"], generator)
    name = script.DATASET + ("" if data.facts["official"] else ", subset")
    return images[:COUNT], views[:COUNT], name


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--cifar-dir", type=Path, help="where CIFAR-10 is, if not in --data-dir")
    parser.add_argument("--output", type=Path, default=ROOT / "results/reference/figures")
    options = parser.parse_args(argv)
    found = []
    for name, network, below in SETS:
        script = load_script(name)
        folder = options.cifar_dir if "cifar" in name and options.cifar_dir else options.data_dir
        for place in dict.fromkeys((folder, folder / below)):  # the complete set, else its subset
            try:
                found.append(before_and_after(script, network, place))
                break
            except ValueError as error:
                problem = error
        else:
            print(f"note: left out: {problem}", file=sys.stderr)
    if not found:
        print(f"error: there is no data set in {options.data_dir}: give a folder with --data-dir", file=sys.stderr)
        return 2
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 8, "svg.hashsalt": "spinalnet"}):
        figure, grid = pyplot.subplots(
            len(found), 1, figsize=(6.3, 1.75 * len(found)), squeeze=False, layout="constrained"
        )
        for axes, (before, after, name) in zip(grid.flat, found):
            rows = [torch.nn.functional.pad(images, (1, 1, 1, 1), value=255) for images in (before, after)]
            picture = torch.cat([torch.cat(list(row), 2) for row in rows], 1).permute(1, 2, 0)
            axes.imshow(picture.squeeze(2) if picture.shape[2] == 1 else picture, cmap="gray", interpolation="nearest")
            size = rows[0].shape[2]
            axes.set_yticks([size / 2, 1.5 * size], ["as it is", "as trained on"])
            axes.set_xticks([])
            axes.tick_params(length=0)
            axes.set_title(name, fontsize=8, loc="left", pad=3)
            for side in axes.spines.values():
                side.set_visible(False)
        options.output.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.output / "augmentation_samples.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(options.output / "augmentation_samples.png", dpi=150, metadata={"Software": None})
        pyplot.close(figure)
    print(f"{len(found)} data sets: {options.output / 'augmentation_samples.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
