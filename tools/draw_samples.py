"""What augmentation does to the images: python tools/draw_samples.py --data-dir data

Draws results/reference/figures/augmentation_samples.svg and .png: for each data set that is there,
eight training images above, and below them the same images as the first epoch of seed 0 sees them
(published recipe). Sets that are not there are named and left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from measure_costs import load_script

ROOT = Path(__file__).resolve().parent.parent
SETS = [  # script, network, and where its incomplete set is, below the data folder
    ("mnist", "vgg5", ""),
    ("fashion_mnist", "vgg5", ""),
    ("kmnist", "vgg5", "subset"),
    ("emnist_digits", "vgg5", "subset"),
    ("emnist_letters", "vgg5", "subset"),
    ("cifar10", "vgg19", ""),
]
COUNT = 8


def before_and_after(script, network: str, folder: Path) -> tuple[Tensor, Tensor, str]:
    """(COUNT, C, H, W) uint8 each, and the name of the set."""
    recipe = script.recipe_of(network, "fc", "published")
    data = script.load_data(folder, recipe, False, torch.device("cpu"))
    images, labels = data.train
    generator = torch.Generator().manual_seed(script.seed_of(0, "data", 1))
    torch.randperm(len(labels), generator=generator)  # the order of the batches, drawn first
    views = script.augment(images, recipe.augmentation, generator)
    some = torch.arange(COUNT) * (len(images) // COUNT)  # parts are sorted by class
    part = "" if data.facts["official"] else ", a part"
    stored = " (its files hold images transposed)" if "EMNIST" in script.DATASET else ""
    name = f"{script.DATASET}{part}{stored}; augmentation of {network}"
    return images[some], views[some], name


def found_sets(folder: Path) -> list[tuple[Tensor, Tensor, str]]:
    """Images of the sets that are there."""
    found = []
    for name, network, below in SETS:
        script = load_script(name)
        problem = None
        for place in dict.fromkeys((folder, folder / below)):  # the complete set, else its subset
            try:
                found.append(before_and_after(script, network, place))
                break
            except ValueError as error:
                problem = error
        else:
            print(f"note: left out: {problem}", file=sys.stderr)
    return found


def draw_set(axes, before: Tensor, after: Tensor, name: str) -> None:
    """Two rows of images."""
    rows = []
    for images in (before, after):
        rows.append(torch.cat(list(F.pad(images, (1, 1, 1, 1), value=255)), 2))
    picture = torch.cat(rows, 1).permute(1, 2, 0)
    if picture.shape[2] == 1:
        picture = picture.squeeze(2)
    axes.imshow(picture, cmap="gray", interpolation="nearest")
    size = rows[0].shape[1]
    axes.set_yticks([size / 2, 1.5 * size], ["as it is", "as trained on"])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_title(name, fontsize=8, loc="left", pad=3)
    for side in axes.spines.values():
        side.set_visible(False)


def draw(found: list[tuple[Tensor, Tensor, str]], folder: Path) -> None:
    """Writes the figure, the same bytes for the same images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context({"font.size": 8, "svg.hashsalt": "spinalnet"}):
        layout = {"figsize": (6.3, 1.75 * len(found)), "squeeze": False, "layout": "constrained"}
        figure, grid = pyplot.subplots(len(found), 1, **layout)
        for axes, (before, after, name) in zip(grid.flat, found, strict=True):
            draw_set(axes, before, after, name)
        path = folder / "augmentation_samples.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
        pyplot.close(figure)
    print(f"{len(found)} data sets: {path}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="default: data")
    default = ROOT / "results/reference/figures"
    parser.add_argument("--output", type=Path, default=default, help="folder of the figure")
    options = parser.parse_args(argv)
    found = found_sets(options.data_dir)
    if not found:
        text = f"error: there is no data set in {options.data_dir}: name a folder with --data-dir"
        print(text, file=sys.stderr)
        return 2
    draw(found, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
