"""Keep the text that the scripts share equal in all of them. Standard library only.

    python tools/sync.py            copy every shared block from its origin into the other scripts
    python tools/sync.py --check    change nothing; name each difference, exit status 1 if there is one

Each script runs on its own, so scripts share text instead of code. A shared block is fenced by two lines that begin
with

    # >>> shared: NAME (origin FOLDER/SCRIPT.py; edit there, then: make sync)
    # <<< shared: NAME

Its origin is a script like the others, run every day. The whole block counts, both fences included, and nothing is
substituted in it: what differs between scripts is a constant outside of the block. Blocks are never copied from copies.

Exit status: 0 all equal (or made equal), 1 differences (--check), 2 fences that make no sense or a block that is
missing; then nothing is written.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("MNIST", "EMNIST", "CIFAR", "Regression", "Transfer_Learning")
# A script in one of these folders has every block whose origin is the script named here ...
FAMILIES = {
    "MNIST": "MNIST/mnist.py",
    "EMNIST": "MNIST/mnist.py",
    "CIFAR": "MNIST/mnist.py",
    "Transfer_Learning": "Transfer_Learning/tl_cifar10.py",
}
# ... except these, whose augmentation or networks are other ones.
EXCEPTIONS = {
    "MNIST/fashion_mnist.py": {"perspective"},
    "MNIST/arch2_fashion_mnist.py": {"perspective", "networks"},
    "MNIST/arch2_kmnist.py": {"networks"},
    "MNIST/arch2_mnist.py": {"networks"},
    "MNIST/arch2_qmnist.py": {"networks"},
    "EMNIST/arch2_emnist_digits.py": {"networks"},
    "MNIST/optdigits.py": {"perspective"},
    "CIFAR/cifar10.py": {"warp", "perspective", "networks"},
    "CIFAR/cifar100.py": {"warp", "perspective", "networks"},
}

BEGIN = re.compile(r"# >>> shared: (?P<name>\w+) \(origin (?P<origin>[^\s;()]+);")
END = re.compile(r"# <<< shared: (?P<name>\w+)\s*$")
FENCE = re.compile(r"\s*#+\s*(>>>|<<<)\s*shared")  # also what was meant as a fence


@dataclass(frozen=True)
class Block:
    """Lines first..last (from 0) of a script, fences included."""

    name: str
    origin: str
    first: int
    last: int


class Script:
    """A script's lines without their newlines, its newline, its blocks by name, and what is wrong with the fences."""

    def __init__(self, root: Path, path: Path):
        self.path, self.name = path, path.relative_to(root).as_posix()
        text = path.read_bytes().decode("utf-8")
        crlf = "\r\n" in text and text.count("\r\n") == text.count("\n")
        self.newline = "\r\n" if crlf else "\n"
        self.lines = text.split(self.newline)
        self.blocks: dict[str, Block] = {}
        self.errors: list[str] = []
        self._find_blocks()

    def text(self, block: Block) -> list[str]:
        return self.lines[block.first : block.last + 1]

    def _find_blocks(self) -> None:
        opened: tuple[re.Match, int] | None = None
        for number, line in enumerate(self.lines):
            if not FENCE.match(line):
                continue
            begin, end = BEGIN.match(line), END.match(line)
            if begin:
                if opened:
                    self._error(number, f"block {begin['name']} begins inside block {opened[0]['name']}")
                opened = begin, number
            elif not end:
                self._error(number, f"not a fence as tools/sync.py describes it: {line.strip()}")
            elif not opened:
                self._error(number, f"block {end['name']} ends without a beginning")
            elif end["name"] != opened[0]["name"]:
                self._error(number, f"block {end['name']} ends where block {opened[0]['name']} is open")
                opened = None
            else:
                self._add(Block(end["name"], opened[0]["origin"], opened[1], number))
                opened = None
        if opened:
            self._error(opened[1], f"block {opened[0]['name']} has no end")

    def _add(self, block: Block) -> None:
        if block.name in self.blocks:
            self._error(
                block.first, f"block {block.name} is here twice, first in line {self.blocks[block.name].first + 1}"
            )
        else:
            self.blocks[block.name] = block

    def _error(self, number: int, message: str) -> None:
        self.errors.append(f"{self.name}:{number + 1}: {message}")


def read_scripts(root: Path) -> dict[str, Script]:
    """Every script of the collection by its name, `MNIST/mnist.py`."""
    scripts = [Script(root, path) for folder in FOLDERS for path in sorted((root / folder).glob("*.py"))]
    return {script.name: script for script in scripts}


def find_errors(scripts: dict[str, Script]) -> list[str]:
    """What has to be mended by hand, one line each."""
    errors = [error for script in scripts.values() for error in script.errors]
    first_use: dict[str, tuple[str, Block]] = {}
    for script in scripts.values():
        for block in script.blocks.values():
            place = f"{script.name}:{block.first + 1}: block {block.name}"
            other, known = first_use.setdefault(block.name, (script.name, block))
            if block.origin != known.origin:
                errors.append(f"{place} has origin {block.origin}, but {known.origin} in {other}:{known.first + 1}")
            elif block.origin not in scripts:
                errors.append(f"{place} has origin {block.origin}, which is no script of this collection")
            elif block.name not in scripts[block.origin].blocks:
                errors.append(f"{place} has origin {block.origin}, which has no such block")
    for folder, origin in FAMILIES.items():
        needed = (
            [block.name for block in scripts[origin].blocks.values() if block.origin == origin]
            if origin in scripts
            else []
        )
        for script in scripts.values():
            if script.name.startswith(f"{folder}/"):
                missing = set(needed) - set(script.blocks) - EXCEPTIONS.get(script.name, set())
                errors += [
                    f"{script.name}:1: block {name} of {origin} is missing; every script in {folder}/ has it, "
                    "or stands in EXCEPTIONS of tools/sync.py"
                    for name in needed
                    if name in missing
                ]
    return errors


def stale_copies(scripts: dict[str, Script]) -> list[tuple[Script, Block, Script, Block]]:
    """(script, block, origin script, origin block) of each copy whose text differs from its origin."""
    pairs = [
        (script, block, scripts[block.origin], scripts[block.origin].blocks[block.name])
        for script in scripts.values()
        for block in script.blocks.values()
    ]
    return [pair for pair in pairs if pair[0].text(pair[1]) != pair[2].text(pair[3])]


def describe(script: Script, block: Block, origin: Script, original: Block) -> str:
    """One line: where a copy first differs from its origin, and how."""
    ours, theirs = script.text(block), origin.text(original)
    # Only the last line of a block is its closing fence, so the shorter of two blocks that differ is no beginning of
    # the longer.
    at = next(i for i, (our_line, their_line) in enumerate(zip(ours, theirs)) if our_line != their_line)
    sizes = "" if len(ours) == len(theirs) else f" ({len(ours)} lines instead of {len(theirs)})"
    return (
        f"{script.name}:{block.first + at + 1}: block {block.name} differs from {origin.name}:{original.first + at + 1}"
        f"{sizes}: {ours[at]!r} instead of {theirs[at]!r}; mend: make sync (python tools/sync.py)"
    )


def write(script: Script) -> None:
    """Replaces the file at once or not at all; its mode stays."""
    handle, temporary = tempfile.mkstemp(dir=script.path.parent, prefix=".sync-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(script.newline.join(script.lines).encode("utf-8"))
        shutil.copymode(script.path, temporary)
        os.replace(temporary, script.path)
    except BaseException:
        os.unlink(temporary)
        raise


def repair(stale: list[tuple[Script, Block, Script, Block]]) -> None:
    """Copies the origin's text over each stale block, from a script's end on, so that line numbers hold."""
    for script, block, origin, original in sorted(stale, key=lambda pair: -pair[1].first):
        script.lines[block.first : block.last + 1] = origin.text(original)
    for script in dict.fromkeys(pair[0] for pair in stale):
        write(script)
        blocks = [f"{block.name} from {block.origin}" for changed, block, *_ in stale if changed is script]
        print(f"{script.name}: copied {', '.join(blocks)}")


def main(argv: list[str] | None = None) -> int:
    """Exit status: see above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if a copy differs from its origin"
    )
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parent.parent, help="default: this collection"
    )
    options = parser.parse_args(argv)
    try:
        scripts = read_scripts(options.root)
        errors = find_errors(scripts)
        if errors:
            print(*(f"error: {error}" for error in errors), sep="\n", file=sys.stderr)
            return 2
        stale = stale_copies(scripts)
        if not stale:
            blocks = sum(len(script.blocks) for script in scripts.values())
            print(f"{blocks} shared blocks in {len(scripts)} scripts: all equal")
        elif options.check:
            print(*(describe(*pair) for pair in stale), sep="\n")
            return 1
        else:
            repair(stale)
        return 0
    except (OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
