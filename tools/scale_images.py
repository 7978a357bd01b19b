"""Scale the pictures of a folder tree once, so that no epoch has to decode large ones.

    python tools/scale_images.py data/flowers-102 scaled/flowers-102 --side 512
    python Transfer_Learning/tl_oxford_flowers102.py --data-dir scaled

Every picture whose shorter side is longer than --side is scaled to it (bilinear with antialiasing,
as torchvision's Resize; JPEG quality 95) and keeps name and place; all other files are copied as
they are. Linked folders are followed. The views of a scaled picture are close to those of the
original, not equal: the fingerprint of the data in a log (`data.sha256`) is another one, and the
report never averages the two. Take a side of at least the script's --image-size. What is there
already is left alone, so an interrupted call is repeated.

Exit status: 0 done, 2 there is no file, or one that cannot be read, scaled or written.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


def files_below(folder: Path) -> list[Path]:
    """All files, also those of linked folders, but not through a link to a folder above itself."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        above = [parent.resolve() for parent in Path(place).parents]
        if Path(place).resolve() in above:
            folders.clear()
            continue
        found += [Path(place, name) for name in names]
    return sorted(found)


def scale(source: Path, target: Path, side: int) -> bool:
    """Writes one file of the new tree. Is it a scaled picture?

    Raises ValueError if the picture has more than 8 bits a channel, which would be lost.
    """
    if target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.stem}.part{target.suffix}")
    scaled = False
    if source.suffix.lower() in SUFFIXES and not source.name.startswith("."):
        with Image.open(source) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would turn most of it white
                raise ValueError(f"it has more than 8 bits a channel (mode {image.mode})")
            shorter = min(image.size)
            scaled = shorter > side
            if scaled:
                size = [max(1, int(side * length / shorter)) for length in image.size]
                smaller = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
                smaller.save(unfinished, image.format, quality=95)
    if not scaled:
        shutil.copyfile(source, unfinished)
    os.replace(unfinished, target)
    return scaled


def scale_or_say(source: Path, old: Path, new: Path, side: int) -> bool | str:
    """`scale` of a file below `old`, or what is wrong with it."""
    try:
        return scale(source, new / source.relative_to(old), side)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"{source}: {error}"


def main(argv: list[str] | None = None) -> int:
    """Exit status: see above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="folder with the pictures, at any depth")
    parser.add_argument("new", type=Path, help="folder to write, outside of the old one")
    parser.add_argument(
        "--side", type=int, default=512, metavar="N", help="of the shorter side; default: 512"
    )
    options = parser.parse_args(argv)
    old, new = options.old.resolve(), options.new.resolve()
    if not old.is_dir():
        parser.error(f"{options.old} is no folder")
    if new.is_relative_to(old):
        parser.error(f"{options.new} must lie outside of {options.old}")
    if options.side < 1:
        parser.error("--side must be 1 or more")
    files = files_below(old)
    if not files:
        parser.error(f"there is no file in {options.old}")
    with ProcessPoolExecutor() as pool:
        task = partial(scale_or_say, old=old, new=new, side=options.side)
        results = list(pool.map(task, files, chunksize=16))
    wrong = [result for result in results if isinstance(result, str)]
    print(f"{len(files):,} files, {results.count(True):,} pictures scaled: {new}")
    for line in wrong:
        print(f"error: cannot be scaled: {line}", file=sys.stderr)
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
