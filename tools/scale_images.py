"""Scale the pictures of a folder tree once, so that no epoch has to decode large ones.

    python tools/scale_images.py data/flowers-102 scaled/flowers-102 --side 512
    python Transfer_Learning/tl_oxford_flowers102.py --data-dir scaled

Every picture whose shorter side is longer than --side is scaled to it (bilinear with antialiasing, as torchvision's
Resize; JPEG quality 95) and keeps name and place; all other files are copied as they are. The views of a scaled picture
are close to those of the original, not equal: the fingerprint of the data in a log (`data.sha256`) is another one, and
the report never averages the two. Take a side of at least the script's --image-size. What is there already is left
alone, so an interrupted call is repeated. Exit status: 0 done, 2 a file cannot be read or written.
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

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def scale(source: Path, target: Path, side: int) -> bool:
    """Writes one file of the new tree; returns whether it is a scaled picture."""
    if target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    partial_file = target.with_name(f"{target.stem}.part{target.suffix}")
    scaled = False
    if source.suffix.lower() in SUFFIXES:
        with Image.open(source) as image:
            shorter = min(image.size)
            if scaled := shorter > side:
                size = [max(1, int(side * length / shorter)) for length in image.size]
                kind = image.format
                image.convert("RGB").resize(size, Image.Resampling.BILINEAR).save(partial_file, kind, quality=95)
    if not scaled:
        shutil.copyfile(source, partial_file)
    os.replace(partial_file, target)
    return scaled


def one(source: Path, old: Path, new: Path, side: int) -> bool | str:
    """`scale` of a file below `old`, or what is wrong with it."""
    try:
        return scale(source, new / source.relative_to(old), side)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"{source} ({error})"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="folder with the pictures, at any depth")
    parser.add_argument("new", type=Path, help="folder to write, outside of the old one")
    parser.add_argument("--side", type=int, default=512, metavar="N", help="pixels of the shorter side; default: 512")
    options = parser.parse_args(argv)
    old, new = options.old.resolve(), options.new.resolve()
    if not old.is_dir() or new.is_relative_to(old) or options.side < 1:
        parser.error("the old folder must be there, the new one must lie outside of it, and --side must be 1 or more")
    files = sorted(path for path in old.rglob("*") if path.is_file())
    with ProcessPoolExecutor() as pool:
        results = list(pool.map(partial(one, old=old, new=new, side=options.side), files, chunksize=16))
    wrong = [result for result in results if isinstance(result, str)]
    print(f"{len(files):,} files, {sum(result is True for result in results):,} pictures scaled: {new}")
    for line in wrong:
        print(f"error: cannot be scaled: {line}", file=sys.stderr)
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
