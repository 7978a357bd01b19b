"""Keep the text that the scripts share equal in all of them. Standard library only.

    python tools/sync.py            copy every shared block from its origin into the other scripts
    python tools/sync.py --check    change nothing; name each difference

Each script runs on its own, so scripts share text instead of code. A shared block is fenced by two
lines:

    # >>> shared: NAME (origin FOLDER/SCRIPT.py; edit there, then: make sync)
    # <<< shared: NAME

Its origin is a script like the others. The whole block counts, both fences included, and nothing is
replaced in it: what differs between scripts is a constant outside of the block.

Exit status: 0 all equal (or made equal), 1 differences (--check), 2 fences that make no sense or a
block that is missing; then nothing is written.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

FOLDERS = ("MNIST", "EMNIST", "CIFAR", "Regression", "Transfer_Learning")
BEGIN = re.compile(r"# >>> shared: (\w+) \(origin ([\w/]+\.py); edit there, then: make sync\)")
END = re.compile(r"# <<< shared: (\w+)")
FENCE = re.compile(r"\s*#+\s*(>>>|<<<)\s*shared")  # also what was meant as a fence
# A script in one of these folders has every block whose origin is the script named here ...
FAMILIES = {
    "MNIST": "MNIST/mnist.py",
    "EMNIST": "MNIST/mnist.py",
    "CIFAR": "MNIST/mnist.py",
    "Transfer_Learning": "Transfer_Learning/tl_cifar10.py",
}
# ... except these, whose augmentations or networks are other ones.
EXCEPTIONS = {
    "MNIST/fashion_mnist.py": {"perspective"},
    "MNIST/optdigits.py": {"perspective"},
    "MNIST/arch2_fashion_mnist.py": {"perspective", "networks"},
    "MNIST/arch2_kmnist.py": {"networks"},
    "MNIST/arch2_mnist.py": {"networks"},
    "MNIST/arch2_qmnist.py": {"networks"},
    "EMNIST/arch2_emnist_digits.py": {"networks"},
    "CIFAR/cifar10.py": {"warp", "perspective", "networks"},
    "CIFAR/cifar100.py": {"warp", "perspective", "networks"},
    "Transfer_Learning/tl_folder.py": {"transfer_split", "transfer_network", "transfer_main"},
}


class Block(NamedTuple):
    """A shared block of a script: its lines, and the number of the first one, from 0."""

    origin: str
    first: int
    lines: list[str]


def find_blocks(name: str, lines: list[str]) -> tuple[dict[str, Block], list[str]]:
    """The blocks of a script by name, and what is wrong with its fences."""
    blocks: dict[str, Block] = {}
    errors = []
    opened = None  # name, origin and line of the block that has not ended yet
    for number, line in enumerate(lines):
        if not FENCE.match(line):
            continue
        place = f"{name}:{number + 1}"
        begin, end = BEGIN.fullmatch(line), END.fullmatch(line)
        if begin and not opened and begin[1] not in blocks:
            opened = (begin[1], begin[2], number)
        elif end and opened and end[1] == opened[0]:
            blocks[end[1]] = Block(opened[1], opened[2], lines[opened[2] : number + 1])
            opened = None
        elif begin:
            errors.append(f"{place}: block {begin[1]} begins inside another one, or is here twice")
        elif end:
            errors.append(f"{place}: block {end[1]} ends, but did not begin")
        else:
            errors.append(f"{place}: not a fence as tools/sync.py describes it: {line.strip()}")
    if opened:
        errors.append(f"{name}:{opened[2] + 1}: block {opened[0]} has no end")
    return blocks, errors


def find_errors(scripts: dict[str, dict[str, Block]]) -> list[str]:
    """Blocks without an origin, and blocks that a script of a family lacks."""
    errors = []
    for name, blocks in scripts.items():
        for title, block in blocks.items():
            if title not in scripts.get(block.origin, {}):
                errors.append(f"{name}: block {title} is not in its origin, {block.origin}")
            elif scripts[block.origin][title].origin != block.origin:
                errors.append(f"{name}: the origin of block {title} is a copy: {block.origin}")
        origin = FAMILIES.get(name.split("/")[0])
        for title, block in scripts.get(origin, {}).items():
            needed = block.origin == origin and title not in EXCEPTIONS.get(name, set())
            if needed and title not in blocks:
                errors.append(
                    f"{name}: block {title} of {origin} is missing; "
                    "put it there, or name it in EXCEPTIONS of tools/sync.py"
                )
    return errors


def describe(name: str, title: str, copy: Block, origin: Block) -> str:
    """One line: where a copy first differs from its origin, and how."""
    pairs = zip(copy.lines, origin.lines, strict=False)
    at, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    place = f"{name}:{copy.first + at + 1}: block {title}"
    source = f"{copy.origin}:{origin.first + at + 1}"
    return f"{place} differs from {source}: {ours!r} instead of {theirs!r}; mend: make sync"


def synchronise(root: Path, check: bool) -> int:
    """Compares all copies with their origins, and unless `check` copies. Returns the exit status"""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).glob("*.py"))]
    files = {path.relative_to(root).as_posix(): path for path in paths}
    texts = {name: path.read_text("utf-8").split("\n") for name, path in files.items()}
    scripts, errors = {}, []
    for name, lines in texts.items():
        scripts[name], wrong = find_blocks(name, lines)
        errors += wrong
    errors = errors or find_errors(scripts)
    if errors:
        print(*[f"error: {error}" for error in errors], sep="\n", file=sys.stderr)
        return 2
    different = False
    for name, blocks in scripts.items():
        # From the end on, so that the line numbers before it hold.
        for title, block in sorted(blocks.items(), key=lambda item: -item[1].first):
            origin = scripts[block.origin][title]
            if block.lines == origin.lines:
                continue
            different = True
            if check:
                print(describe(name, title, block, origin))
                continue
            end = block.first + len(block.lines)
            texts[name][block.first : end] = origin.lines
            files[name].write_text("\n".join(texts[name]), "utf-8")
            print(f"{name}: copied {title} from {block.origin}")
    if not different:
        count = sum(len(blocks) for blocks in scripts.values())
        print(f"{count} shared blocks in {len(scripts)} scripts: all equal")
    return int(check and different)


def main(argv: list[str] | None = None) -> int:
    """Exit status: see above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; 1: there is a change")
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--root", type=Path, default=root, help="default: this collection")
    args = parser.parse_args(argv)
    try:
        return synchronise(args.root, args.check)
    except (OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
