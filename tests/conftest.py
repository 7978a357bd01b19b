"""What several test files need: the scripts as modules, their runs and logs, and real data."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: tests compare bits
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
ROOT = Path(__file__).resolve().parent.parent
PACKED = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT / "tools"))  # tests import the tools by their names

MNIST = ["MNIST/mnist", "MNIST/fashion_mnist", "MNIST/kmnist", "MNIST/qmnist"]
EMNIST = ["EMNIST/emnist_digits", "EMNIST/emnist_letters", "EMNIST/emnist_balanced"]
ARCH2 = ["MNIST/arch2_mnist", "MNIST/arch2_fashion_mnist", "MNIST/arch2_kmnist"]
ARCH2 += ["MNIST/arch2_qmnist", "EMNIST/arch2_emnist_digits"]
FAMILY = [*MNIST, "MNIST/optdigits", *EMNIST]  # small CNN and VGG-5
SCRIPTS = [*FAMILY, *ARCH2]


def load_script(path: str, text=None, optimize: int = -1):
    """A script of the collection as a module, or this text or tree in place of its own.

    path: relative to the repository, without .py; optimize: 1 for python -O, 2 for -OO
    """
    name = "script_" + path.replace("/", "_")
    if text is None and name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses look their module up there
    if text is None:
        spec.loader.exec_module(module)
        return module
    try:
        exec(compile(text, spec.origin, "exec", optimize=optimize), module.__dict__)
    finally:
        sys.modules.pop(name)
        if before:
            sys.modules[name] = before
    return module


def run(script: str, data: Path, results: Path, *flags: str) -> int:
    """Exit status of the script's main, argparse's included."""
    where = ["--data-dir", str(data), "--results-dir", str(results)]
    try:
        return load_script(script).main([*where, "--no-download", "--device", "cpu", *flags])
    except SystemExit as end:
        return end.code


def lines_of(path: Path) -> list[dict]:
    """The lines of a log without what no two runs share: times, and where it went on."""
    kept = []
    for text in path.read_text().splitlines():
        line = json.loads(text)
        if line["event"] != "resume":
            kept.append({key: line[key] for key in line if key not in ("seconds", "ended")})
    return kept


def logs_in(results: Path) -> dict[str, list[dict]]:
    """The finished logs below a folder of results."""
    return {path.name: lines_of(path) for path in sorted(results.glob("logs/*/*.jsonl"))}


def one_error(text: str) -> str:
    """The only sentence about an error in what was printed."""
    assert "Traceback" not in text, text
    (error,) = [line for line in text.splitlines() if "error: " in line]
    assert 20 < len(error) < 700
    return error


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder with small made-up sets for the scripts of MNIST/ and EMNIST/, side by side."""
    from made_up_data import write_data

    return write_data(tmp_path_factory.mktemp("data"), train=132)


def unpacked(tmp_path_factory, *names: str) -> Path:
    """A folder with these packed sets in torchvision's layout; skips where there are none."""
    if os.environ.get("SPINALNET_DATA"):
        return Path(os.environ["SPINALNET_DATA"])
    if not (PACKED / "unpack.py").exists():
        pytest.skip(f"needs real data: set SPINALNET_DATA to their folder, or see {PACKED}")
    folder = tmp_path_factory.mktemp("real")
    command = [sys.executable, PACKED / "unpack.py", folder, *names]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def real_data(tmp_path_factory) -> Path:
    """A folder with MNIST, FashionMNIST and subset/KMNIST."""
    return unpacked(tmp_path_factory, "mnist", "fashion-mnist", "kmnist-subset")


@pytest.fixture(scope="session")
def real_subset(tmp_path_factory) -> Path:
    """The folder that holds the real subset of EMNIST."""
    return unpacked(tmp_path_factory, "emnist-subset") / "subset"


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory) -> Path:
    return unpacked(tmp_path_factory, "cifar10")
