"""Data from outside: torchvision fetches them; missing, damaged or foreign ones are one sentence and status 2."""

import gzip
import hashlib
import http.server
import os
import pickle
import threading

import numpy as np
import pytest

from conftest import load_script

SCRIPTS = ["MNIST/mnist", "MNIST/qmnist", "EMNIST/emnist_digits", "CIFAR/cifar10", "CIFAR/cifar100"]
TRANSFER = ["Transfer_Learning/tl_cifar10", "Transfer_Learning/tl_hymenoptera", "Transfer_Learning/tl_stanford_cars"]


def idx(array, kind=8):
    return bytes([0, 0, kind, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def pickled(classes, base):
    """CIFAR's files, eight images each."""
    rng, key = np.random.default_rng(0), "labels" if classes == 10 else "fine_labels"
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    batch = {"data": rng.integers(0, 256, (8, 3072), dtype="u1"), key: list(range(8))}
    more = (
        {"batches.meta": {"label_names": ["x"] * 10}} if classes == 10 else {"meta": {"fine_label_names": ["x"] * 100}}
    )
    return {f"{base}/{name}": pickle.dumps(batch, 2) for name in names} | {
        f"{base}/{k}": pickle.dumps(v, 2) for k, v in more.items()
    }


def files_of(script):
    """Small files of the right format, by their place below the data folder."""
    rng, files = np.random.default_rng(0), {}
    if "cifar" in script:
        classes = 100 if script.endswith("100") else 10
        return pickled(classes, "cifar-100-python" if classes == 100 else "cifar-10-batches-py")
    name = {"MNIST/mnist": "MNIST", "MNIST/qmnist": "QMNIST", "EMNIST/emnist_digits": "EMNIST"}[script]
    parts = {
        "MNIST": ("train", "t10k"),
        "QMNIST": ("qmnist-train", "qmnist-test"),
        "EMNIST": ("emnist-digits-train", "emnist-digits-test"),
    }[name]
    for part, count in zip(parts, (30, 20)):
        labels = np.arange(count) % 10
        files[f"{name}/raw/{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28), dtype="u1"))
        if name == "QMNIST":
            files[f"{name}/raw/{part}-labels-idx2-int"] = idx(np.stack([labels] * 8, 1).astype(">i4"), 12)
        else:
            files[f"{name}/raw/{part}-labels-idx1-ubyte"] = idx(labels.astype("u1"))
    return files


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def run(script, folder, *arguments):
    """Exit status of the script, which is to stop before it trains."""
    argv = ["--quiet", "--epochs", "1", "--limit", "10", "--device", "cpu", *arguments]
    weights = ["--weights", "none"] if script.startswith("Transfer") else []
    try:
        return load_script(script).main(
            [*argv, *weights, "--data-dir", str(folder), "--results-dir", str(folder.parent / "results")]
        )
    except SystemExit as end:
        return end.code


def one_error(capture):
    """The only line of standard error that is no note or progress."""
    text = capture.readouterr().err
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in text and 20 < len(error) < 900
    return error


@pytest.mark.parametrize("script", SCRIPTS + TRANSFER)
def test_missing_data_without_download_are_one_sentence(tmp_path, capfd, script):
    assert run(script, tmp_path / "data", "--no-download") == 2
    assert str(tmp_path / "data") in one_error(capfd) and not list(tmp_path.glob("results/logs/*/*"))


DAMAGES = {
    "truncated": lambda content: content[:-100],
    "empty": lambda content: b"",
    "html": lambda content: b"<!doctype html><html>404</html>",
    "missing": None,
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_are_one_sentence(tmp_path, capfd, script, damage):
    files = files_of(script)
    victim = next(iter(files))
    if DAMAGES[damage]:
        files[victim] = DAMAGES[damage](files[victim])
    else:
        del files[victim]
    write(tmp_path / "data", files)
    assert run(script, tmp_path / "data", "--no-download") == 2
    assert one_error(capfd) and not list(tmp_path.glob("results/logs/*/*"))


def test_images_of_another_shape_are_one_sentence(tmp_path, capfd):
    files = files_of("MNIST/mnist") | {"MNIST/raw/train-images-idx3-ubyte": idx(np.zeros((30, 8, 8), "u1"))}
    write(tmp_path / "data", files)
    assert run("MNIST/mnist", tmp_path / "data", "--no-download") == 2 and one_error(capfd)


def test_other_images_than_the_official_ones_are_named_in_the_log(tmp_path, capfd):
    write(tmp_path / "data", files_of("MNIST/mnist"))
    assert run("MNIST/mnist", tmp_path / "data", "--no-download", "--head", "fc") == 0
    (log,) = tmp_path.glob("results/logs/mnist/*.jsonl")
    assert "-data" in log.name and '"official": false' in log.read_text()


@pytest.mark.parametrize(
    "script", ["MNIST/mnist", "EMNIST/emnist_digits", "CIFAR/cifar10", "Transfer_Learning/tl_cifar10"]
)
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, capfd, script):
    (tmp_path / "file").write_text("")
    assert run(script, tmp_path / "file" / "below") == 2 and str(tmp_path / "file") in one_error(capfd)


# ---- A server on this machine ----------------------------------------------------------------------------------------
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.server.files.get(self.path[1:])
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """MNIST's four files by name, packed; torchvision takes them for the official ones."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    from torchvision import datasets

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.plain = {name.rsplit("/", 1)[1]: content for name, content in files_of("MNIST/mnist").items()}
        served.files = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in served.plain.items()}
        resources = [(name, hashlib.md5(content).hexdigest()) for name, content in served.files.items()]
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{served.server_port}/"])
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield served
        served.shutdown()


def test_data_are_fetched_once_and_then_enough(tmp_path, server):
    assert run("MNIST/mnist", tmp_path / "data", "--fetch-only") == 0
    raw = tmp_path / "data/MNIST/raw"
    assert {name: (raw / name).read_bytes() for name in server.plain} == server.plain
    server.files.clear()
    assert run("MNIST/mnist", tmp_path / "data", "--fetch-only") == 0
    assert not list(tmp_path.glob("results/logs/*/*"))


@pytest.mark.parametrize("sent", ["nothing", "another file", "a page"])
def test_what_cannot_be_fetched_is_one_sentence(tmp_path, capfd, server, sent):
    first = next(iter(server.files))
    if sent == "nothing":
        server.files.clear()
    else:
        server.files[first] = (
            gzip.compress(os.urandom(100)) if sent == "another file" else b"<html>blocked by a proxy</html>"
        )
    assert run("MNIST/mnist", tmp_path / "data") == 2
    assert one_error(capfd) and not list(tmp_path.glob("results/logs/*/*"))


class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("script", ["CIFAR/cifar10", "CIFAR/cifar100"])
def test_a_foreign_pickle_is_not_loaded(tmp_path, capfd, script):
    """Its checksum is compared first."""
    files, marker = files_of(script), tmp_path / "executed"
    write(tmp_path / "data", {name: pickle.dumps(Evil(marker), 2) for name in files})
    assert run(script, tmp_path / "data", "--no-download") == 2
    assert one_error(capfd) and not marker.exists()
