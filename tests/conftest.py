"""What several test files need: the scripts as modules, and real data where there are any."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: tests compare numbers bit by bit
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and so their children, ignore it
ROOT = Path(__file__).resolve().parent.parent
PACKED = ROOT.parent / "shared" / "data"


def load_script(path: str):
    """A script of the collection as a module; `path` is relative to the repository, without .py."""
    name = "script_" + path.replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / f"{path}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def real_data(tmp_path_factory) -> Path:
    """A folder with MNIST, FashionMNIST and subset/KMNIST in torchvision's layout; skips where there is none."""
    if os.environ.get("SPINALNET_DATA"):
        return Path(os.environ["SPINALNET_DATA"])
    if not (PACKED / "unpack.py").exists():
        pytest.skip(f"needs real data: set SPINALNET_DATA to an unpacked data root, or put the packed sets at {PACKED}")
    return unpacked(tmp_path_factory, "mnist", "fashion-mnist", "kmnist-subset")


def unpacked(tmp_path_factory, *names: str) -> Path:
    """A folder with these packed sets in torchvision's layout; skips where there are none."""
    if not (PACKED / "unpack.py").exists():
        pytest.skip(f"needs real data: put the packed sets at {PACKED}")
    folder = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, PACKED / "unpack.py", folder, *names], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def real_subset(tmp_path_factory) -> Path:
    """The folder that holds the real subset of EMNIST."""
    return unpacked(tmp_path_factory, "emnist-subset") / "subset"


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory) -> Path:
    return unpacked(tmp_path_factory, "cifar10")
