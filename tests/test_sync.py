"""tools/sync.py: the shared text of the scripts is equal; differences are found, named, mended."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import sync  # noqa: E402  (tools/ is no package)

ORIGIN = "MNIST/mnist.py"
COPIES = ("MNIST/kmnist.py", "Regression/other.py")


def block(name: str, *body: str, origin: str = ORIGIN) -> str:
    begin = f"# >>> shared: {name} (origin {origin}; edit there, then: make sync)"
    return "\n".join([begin, *body, f"# <<< shared: {name}"]) + "\n"


DATA = block("data", "def load():", "    return 1", "", "# Größe")
TRAIN = block("train", "def train():", "    pass")


@pytest.fixture
def tree(tmp_path):
    """Three scripts with the same two blocks between lines of their own."""
    for name in (ORIGIN, *COPIES):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# script {name}\n{DATA}FACT = {name!r}\n{TRAIN}# end\n", "utf-8")
    return tmp_path


def run(tree, *flags) -> int:
    return sync.main([*flags, "--root", str(tree)])


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), "utf-8")


def contents(tree) -> dict:
    return {path: path.read_bytes() for path in sorted(tree.rglob("*")) if path.is_file()}


def test_equal_copies_pass(tree, capsys):
    before = contents(tree)
    assert run(tree, "--check") == 0
    assert run(tree) == 0
    assert contents(tree) == before
    assert "6 shared blocks in 3 scripts: all equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("return 1", "return 2", 4),
        ("return 1", "return 1 ", 4),
        ("def train", "def brain", 10),
        ("# Größe", "# Grösse", 6),
        ("    pass\n", "", 11),
        ("return 1\n", "return 1\n    # more\n", 5),
    ],
)
def test_a_difference_is_named_and_mended_to_the_byte(tree, capsys, old, new, line):
    before = contents(tree)
    for name in COPIES:
        change(tree / name, old, new)
    changed = contents(tree)
    assert run(tree, "--check") == 1
    findings = capsys.readouterr().out.splitlines()
    assert contents(tree) == changed, "--check changes nothing"
    assert [finding.split(": ")[0] for finding in findings] == [f"{name}:{line}" for name in COPIES]
    assert all(f"{ORIGIN}:{line}" in finding for finding in findings)
    assert run(tree) == 0
    assert contents(tree) == before


def test_the_origin_wins_also_where_lengths_differ(tree):
    change(tree / ORIGIN, "    return 1\n", "    one = 1\n    return one\n")
    assert run(tree) == 0
    origin = (tree / ORIGIN).read_text("utf-8")
    for name in COPIES:
        own = origin.replace(f"# script {ORIGIN}", f"# script {name}")
        own = own.replace(f"FACT = {ORIGIN!r}", f"FACT = {name!r}")
        assert (tree / name).read_text("utf-8") == own
    assert run(tree, "--check") == 0


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (COPIES[1], "# <<< shared: train\n", "", "Regression/other.py:9: block train has no end"),
        (COPIES[1], TRAIN.splitlines()[0], "#", "other.py:12: block train ends, but did not begin"),
        (COPIES[1], "# <<< shared: data\n", "", "other.py:8: block train begins inside another"),
        (COPIES[1], "# <<< shared: data", "# <<< shared: date", "block date ends, but did not"),
        (COPIES[1], TRAIN, TRAIN + DATA, "other.py:13: block data begins inside another one, or"),
        (COPIES[1], "# end", block("new", origin="MNIST/none.py"), "not in its origin, MNIST/none"),
        (COPIES[1], "# end", block("new"), "block new is not in its origin, MNIST/mnist.py"),
        (COPIES[1], "train (origin MNIST/mnist.py", "train (origin MNIST/kmnist.py", "is a copy"),
        (COPIES[1], "# >>> shared: train (", "#  >>> shared train (", "other.py:9: not a fence"),
        (COPIES[1], "; edit there", "", None),
        (COPIES[0], TRAIN, "", "MNIST/kmnist.py: block train of MNIST/mnist.py is missing"),
    ],
)
def test_nonsense_is_named_and_nothing_is_written(tree, capsys, name, old, new, message):
    change(tree / ORIGIN, "return 1", "return 2")  # there would be something to copy
    if message is None:
        path = tree / name
        path.write_text(path.read_text("utf-8").replace(old, new, 1), "utf-8")
        message = "not a fence"
    else:
        change(tree / name, old, new)
    before = contents(tree)
    for flags in ([], ["--check"]):
        assert run(tree, *flags) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
    assert contents(tree) == before


def test_other_folders_may_use_any_part_and_exceptions_any_other(tree, monkeypatch):
    change(tree / COPIES[1], TRAIN, "")
    assert run(tree, "--check") == 0
    change(tree / COPIES[0], TRAIN, "")
    assert run(tree, "--check") == 2
    monkeypatch.setattr(sync, "EXCEPTIONS", {COPIES[0]: {"train"}})
    assert run(tree, "--check") == 0


def test_exceptions_name_blocks_that_exist_and_are_not_there():
    def blocks(name):
        return set(sync.find_blocks(name, (ROOT / name).read_text("utf-8").split("\n"))[0])

    for name, left_out in sync.EXCEPTIONS.items():
        assert left_out <= blocks(sync.FAMILIES[name.split("/")[0]]) - blocks(name)


def test_shared_text_of_this_collection_is_equal(capsys):
    status = sync.main(["--check"])
    assert status == 0, "".join(capsys.readouterr())
