"""tools/sync.py: the shared text of the scripts is equal, and differences are found, named and mended."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import sync  # noqa: E402  (tools/ is no package)

ORIGIN = "MNIST/mnist.py"
COPIES = ("MNIST/kmnist.py", "Regression/other.py")


def block(name: str, *body: str, origin: str = ORIGIN) -> str:
    lines = [f"# >>> shared: {name} (origin {origin}; edit there, then: make sync)", *body, f"# <<< shared: {name}"]
    return "\n".join(lines) + "\n"


DATA = block("data", "def load():", "    return 1", "", "# Größe")
TRAIN = block("train", "def train():", "    pass")


@pytest.fixture
def tree(tmp_path):
    """Three scripts with the same two blocks between lines of their own."""
    for name in (ORIGIN, *COPIES):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# script {name}\n{DATA}FACT = {name!r}\n{TRAIN}# end\n", encoding="utf-8", newline="")
    return tmp_path


def run(tree, *flags) -> int:
    return sync.main([*flags, "--root", str(tree)])


def change(path: Path, old: str, new: str) -> None:
    text = path.read_bytes().decode("utf-8")
    assert text.count(old) == 1
    path.write_bytes(text.replace(old, new).encode("utf-8"))


def contents(tree) -> dict:
    return {path: path.read_bytes() for path in sorted(tree.rglob("*")) if path.is_file()}


def test_equal_copies_pass(tree, capsys):
    before = contents(tree)
    assert run(tree, "--check") == 0 and run(tree) == 0
    assert contents(tree) == before
    assert "6 shared blocks in 3 scripts: all equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    "old, new, line",
    [
        ("return 1", "return 2", 4),
        ("def train", "def brain", 10),
        ("# Größe", "# Grösse", 6),
        ("train (origin MNIST/mnist.py; edit", "train (origin MNIST/mnist.py; Edit", 9),
    ],
)
def test_each_changed_character_is_one_finding_and_is_mended_to_the_byte(tree, capsys, old, new, line):
    before = contents(tree)
    for name in COPIES:
        change(tree / name, old, new)
    changed = contents(tree)
    assert run(tree, "--check") == 1
    findings = capsys.readouterr().out.splitlines()
    assert contents(tree) == changed, "--check changes nothing"
    assert len(findings) == 2
    for name in COPIES:
        (finding,) = (text for text in findings if text.startswith(f"{name}:{line}: "))
        assert f"{ORIGIN}:{line}" in finding and "python tools/sync.py" in finding
        assert new in finding and old in finding
    assert run(tree) == 0
    assert contents(tree) == before
    assert {text.split(":")[0] for text in capsys.readouterr().out.splitlines()} == set(COPIES)


def test_origin_wins_and_lengths_may_differ(tree, capsys):
    change(tree / ORIGIN, "    return 1\n", "    one = 1\n    return one\n")
    change(tree / COPIES[0], "    pass\n", "")
    assert run(tree, "--check") == 1
    findings = capsys.readouterr().out.splitlines()
    assert len(findings) == 3 and any("(3 lines instead of 4)" in finding for finding in findings)
    assert run(tree) == 0
    origin = (tree / ORIGIN).read_text(encoding="utf-8")
    for name in COPIES:
        own = origin.replace(f"# script {ORIGIN}", f"# script {name}").replace(f"FACT = {ORIGIN!r}", f"FACT = {name!r}")
        assert (tree / name).read_text(encoding="utf-8") == own
    once = contents(tree)
    assert run(tree) == 0 and run(tree, "--check") == 0
    assert contents(tree) == once


def test_a_blank_at_the_end_of_a_line_is_a_difference_that_one_can_see(tree, capsys):
    change(tree / COPIES[0], "return 1\n", "return 1 \n")
    assert run(tree, "--check") == 1
    assert "'    return 1 ' instead of '    return 1'" in capsys.readouterr().out


def test_mode_and_newlines_are_kept_and_no_file_is_left(tree):
    copy = tree / COPIES[1]
    copy.write_bytes(copy.read_bytes().replace(b"\n", b"\r\n"))
    assert run(tree, "--check") == 0, "another newline is not another text"
    change(copy, "return 1", "return 2")
    copy.chmod(0o750)
    names = set(contents(tree))
    assert run(tree) == 0
    assert copy.read_bytes().count(b"\r\n") == copy.read_bytes().count(b"\n") > 0
    assert os.stat(copy).st_mode & 0o777 == 0o750
    assert set(contents(tree)) == names and run(tree, "--check") == 0


def test_failed_write_leaves_the_old_file_and_no_other(tree, monkeypatch, capsys):
    change(tree / COPIES[0], "return 1", "return 2")
    before = contents(tree)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(sync.os, "replace", fail)
    assert run(tree) == 2
    assert contents(tree) == before and "disk full" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        (COPIES[1], "# <<< shared: train\n", "", "Regression/other.py:9: block train has no end"),
        (COPIES[1], TRAIN.splitlines()[0], "#", "Regression/other.py:12: block train ends without a beginning"),
        (COPIES[1], "# <<< shared: data\n", "", "Regression/other.py:8: block train begins inside block data"),
        (COPIES[1], "# <<< shared: data", "# <<< shared: date", "block date ends where block data is open"),
        (COPIES[1], TRAIN, TRAIN + DATA, "Regression/other.py:13: block data is here twice, first in line 2"),
        (COPIES[1], "# end", block("new", origin="MNIST/none.py"), "origin MNIST/none.py, which is no script"),
        (COPIES[1], "# end", block("new", origin=ORIGIN), "origin MNIST/mnist.py, which has no such block"),
        (
            COPIES[1],
            "train (origin MNIST/mnist.py",
            "train (origin MNIST/kmnist.py",
            "origin MNIST/kmnist.py, but MNIST/mnist.py",
        ),
        (COPIES[1], "# >>> shared: train (", "#  >>> shared train (", "Regression/other.py:9: not a fence"),
        (COPIES[0], TRAIN, "", "MNIST/kmnist.py:1: block train of MNIST/mnist.py is missing"),
    ],
)
def test_nonsense_is_named_and_nothing_is_written(tree, capsys, name, old, new, message):
    change(tree / ORIGIN, "return 1", "return 2")  # there would be something to copy
    change(tree / name, old, new)
    before = contents(tree)
    for flags in ([], ["--check"]):
        assert run(tree, *flags) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ")
    assert contents(tree) == before


def test_other_folders_may_use_any_part_and_exceptions_any_other(tree, monkeypatch):
    change(tree / COPIES[1], TRAIN, "")
    assert run(tree, "--check") == 0
    change(tree / COPIES[0], TRAIN, "")
    monkeypatch.setattr(sync, "EXCEPTIONS", {COPIES[0]: {"train"}})
    assert run(tree, "--check") == 0


def test_exceptions_name_blocks_and_scripts_that_exist():
    scripts = sync.read_scripts(ROOT)
    for name, blocks in sync.EXCEPTIONS.items():
        assert blocks <= set(scripts[sync.FAMILIES[name.split("/")[0]]].blocks) - set(scripts[name].blocks)


def test_shared_text_of_this_collection_is_equal(capsys):
    status = sync.main(["--check"])
    assert status == 0, "".join(capsys.readouterr())
