"""Data from outside: what is damaged, hostile, stalled, read-only or fetched twice at once. Servers are on this machine."""
import gzip
import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest
from conftest import load_script

mnist, qmnist, digits = (load_script(name) for name in ("MNIST/mnist", "MNIST/qmnist", "EMNIST/emnist_digits"))
cifar = {10: load_script("CIFAR/cifar10"), 100: load_script("CIFAR/cifar100")}


def idx(array, kind=8):
    return bytes([0, 0, kind, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def files_of(name, seed=0):
    """The four files of MNIST, QMNIST or EMNIST digits, 30 + 20 images, by their names."""
    rng, files = np.random.default_rng(seed), {}
    parts = {"MNIST": ("train", "t10k"), "QMNIST": ("qmnist-train", "qmnist-test"),
             "EMNIST": ("emnist-digits-train", "emnist-digits-test")}[name]
    for part, count in zip(parts, (30, 20)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28), dtype="u1"))
        labels = np.arange(count) % 10
        if name == "QMNIST":
            files[f"{part}-labels-idx2-int"] = idx(np.stack([labels] * 8, 1).astype(">i4"), 12)
        else:
            files[f"{part}-labels-idx1-ubyte"] = idx(labels.astype("u1"))
    return files


class Server(http.server.ThreadingHTTPServer):
    """Sends `files` by name; `broken` maps a name to what is sent instead the first time."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.broken, self.served, self.delay = {}, {}, [], 0.0
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path[1:]
        self.server.served.append(name)
        time.sleep(self.server.delay)
        body = self.server.broken.pop(name, self.server.files.get(name))
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Length", str(len(self.server.files.get(name, b""))))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as served:
        threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield served
        served.shutdown()


@pytest.fixture
def source(monkeypatch, server):
    """`source(name)`: the script of that data set, its files served here with checksums that fit; and the files unpacked."""
    def make(name):
        files, module = files_of(name), {"MNIST": mnist, "QMNIST": qmnist, "EMNIST": digits}[name]
        packed = {f"{key}.gz": gzip.compress(content, mtime=0) for key, content in files.items()}
        md5 = {key: hashlib.md5(content).hexdigest() for key, content in packed.items()}
        if name == "EMNIST":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for key, content in packed.items():
                    archive.writestr(f"gzip/{key}", content)
            server.files = {"gzip.zip": buffer.getvalue()}
            changes = {"url": server.url + "gzip.zip", "md5": hashlib.md5(buffer.getvalue()).hexdigest()}
        else:
            server.files, names = packed, list(packed)
            changes = {"mirrors": [server.url], "resources": [(key, md5[key]) for key in names]}
            if name == "QMNIST":
                pairs = [(server.url + key, md5[key]) for key in names]
                changes["resources"] = {"train": pairs[:2], "test": pairs[2:]}
        for attribute, value in changes.items():
            monkeypatch.setattr(module.SOURCE, attribute, value)
        return module, files
    return make


def fetch(module, folder, *more):
    return module.main(["--fetch-only", "--quiet", "--data-dir", str(folder), "--results-dir", str(folder / "results"), *more])


def one_error(capture):
    text = capture.readouterr().err
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in text
    return error


# ---- Damage: named before training, mended by a fresh download --------------------------------------------------------------
DAMAGES = {"truncated": lambda content: content[:-100], "empty": lambda content: b"", "missing": None,
           "flipped": lambda content: content[:300] + bytes([content[300] ^ 1]) + content[301:],
           "html": lambda content: b"<!doctype html><html>404</html>"}


@pytest.mark.parametrize("name", ["MNIST", "QMNIST", "EMNIST"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_mended(tmp_path, source, server, capfd, name, damage):
    module, files = source(name)
    assert fetch(module, tmp_path) == 0 and len(server.served) == len(server.files)
    raw, victim = tmp_path / name / "raw", list(files)[0]
    assert {key: (raw / key).read_bytes() for key in files} == files
    bad = DAMAGES[damage](files[victim]) if DAMAGES[damage] else None
    (raw / victim).unlink() if bad is None else (raw / victim).write_bytes(bad)
    for archive in raw.glob("*.*z*"):
        if archive.suffix in (".gz", ".zip"):
            archive.rename(raw / f"{archive.name}.elsewhere")
    assert fetch(module, tmp_path, "--no-download") == 2
    assert victim in one_error(capfd) and not (tmp_path / "results").exists()
    assert bad is None or (raw / victim).read_bytes() == bad  # not touched without a replacement
    assert fetch(module, tmp_path) == 0 and len(server.served) == len(server.files) + 1  # only what is missing
    assert (raw / victim).read_bytes() == files[victim]
    text = capfd.readouterr().err
    if bad is not None:
        assert f"note: {victim}" in text and (raw / f"{victim}.damaged").read_bytes() == bad
    for archive in [*raw.glob("*.gz"), *raw.glob("*.zip")]:  # the archive alone is enough, and is verified
        (raw / victim).write_bytes(b"")
    assert fetch(module, tmp_path, "--no-download") == 0 and not list(raw.glob("*.part"))


@pytest.mark.parametrize("name", ["MNIST", "EMNIST"])
@pytest.mark.parametrize("sent", [b"<html>blocked by a proxy</html>", b"", "cut", "flipped"])
def test_what_arrives_damaged_is_fetched_again(tmp_path, source, server, name, sent):
    module, files = source(name)
    first = list(server.files)[0]
    whole = server.files[first]
    server.broken[first] = {"cut": whole[:50], "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]}.get(sent, sent)
    assert fetch(module, tmp_path) == 0 and server.served.count(first) == 2
    assert {key: (tmp_path / name / "raw" / key).read_bytes() for key in files} == files


def test_a_file_whose_pixels_have_another_shape_is_named(tmp_path, capfd):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in (files_of("MNIST") | {"train-images-idx3-ubyte": idx(np.zeros((30, 8, 8), "u1"))}).items():
        (raw / name).write_bytes(content)
    assert fetch(mnist, tmp_path, "--no-download") == 2 and "train-images-idx3-ubyte" in one_error(capfd)


def test_a_server_that_stalls_is_an_error_and_not_a_wait(tmp_path, monkeypatch, capsys, source):
    source("EMNIST")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setattr(digits.SOURCE, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/gzip.zip")
        assert digits.STALLED == 60
        monkeypatch.setattr(digits, "STALLED", 0.3)
        began = time.monotonic()
        assert fetch(digits, tmp_path) == 2 and time.monotonic() - began < 20
    assert "timed out" in one_error(capsys) and not list((tmp_path / "EMNIST/raw").glob("gzip*"))


def test_complete_data_in_a_read_only_folder_are_enough(tmp_path, source, server):
    """Mounted read-only where we may, since permissions do not stop root."""
    module, _ = source("MNIST")
    folder = tmp_path / "data"
    assert fetch(module, folder) == 0
    (tmp_path / "data/results").mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "--bind", "-o", "ro", str(folder), str(folder)], capture_output=True).returncode == 0
    subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], capture_output=True)
    served = len(server.served)
    try:
        if not mounted:
            for path in (*folder.rglob("*"), folder):
                path.chmod(path.stat().st_mode & ~0o222)
        assert fetch(module, folder) == 0 and len(server.served) == served
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        else:
            for path in (folder, *folder.rglob("*")):
                path.chmod(path.stat().st_mode | 0o700)


# ---- Two at once -----------------------------------------------------------------------------------------------------------
def test_processes_at_once_download_once(tmp_path, source, server, capfd):
    module, files = source("MNIST")
    server.delay = 0.2
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte.gz.999.part").write_bytes(b"left by a process that was killed")
    forks = multiprocessing.get_context("fork")
    processes = [forks.Process(target=lambda: sys.exit(fetch(module, tmp_path))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4 and sorted(server.served) == sorted(server.files)
    assert {key: (raw / key).read_bytes() for key in files} == files and not list(raw.glob("*.part"))
    assert capfd.readouterr().err.count("waiting for another process") == 3


def test_one_process_at_a_time_fetches(tmp_path, capsys):
    order = []

    def second():
        with mnist.one_at_a_time(tmp_path):
            order.append("second")

    with mnist.one_at_a_time(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"] and "waiting for another process" in capsys.readouterr().err


def test_a_folder_that_cannot_be_locked_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    with mnist.one_at_a_time(tmp_path / "file" / "below"):
        pass


# ---- Hostile files ---------------------------------------------------------------------------------------------------------
class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def batches(classes, evil=None):
    """CIFAR's files, eight images each, as Python 2 and 3 pickle them."""
    rng, source, files = np.random.default_rng(0), cifar[classes].SOURCE, {}
    for number, (name, _) in enumerate(source.train_list + source.test_list):
        labels = "labels" if classes == 10 else "fine_labels"
        entry = {"data": rng.integers(0, 256, (8, 3072), dtype="u1"), labels: [number] * 8} | ({"more": evil} if evil else {})
        files[name] = pickle.dumps(entry, protocol=2)
    return files


def official(monkeypatch, classes, files, archive=b""):
    """Makes these files the official ones, by their checksums."""
    module = cifar[classes]
    lists = {key: [[name, hashlib.md5(files[name]).hexdigest()] for name, _ in getattr(module.SOURCE, key)]
             for key in ("train_list", "test_list")}
    lists["tgz_md5"] = hashlib.md5(archive).hexdigest()
    monkeypatch.setattr(module, "SOURCE", type("Small", (module.SOURCE,), lists))
    return module


@pytest.mark.parametrize("classes", cifar)
@pytest.mark.parametrize("known", [False, True], ids=["another checksum", "the right checksum"])
def test_a_pickle_never_runs_anything(tmp_path, monkeypatch, capfd, classes, known):
    """Not even where its checksum is right: MD5 can be forged."""
    module, marker = cifar[classes], tmp_path / "executed"
    files = batches(classes, Evil(marker))
    if known:
        module = official(monkeypatch, classes, files)
    place = tmp_path / "data" / module.SOURCE.base_folder
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    assert fetch(module, tmp_path / "data", "--no-download") == 2
    error = one_error(capfd)
    assert not marker.exists() and ("mkdir" if known else "checksum") in error and list(files)[0] in error
    pickle.loads(list(files.values())[0])
    assert marker.exists()  # it would have


def tar_of(members):
    """A tar.gz of (name, content) and (name, link target as text)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("classes", cifar)
def test_cifars_archive_cannot_write_outside_of_its_folder(tmp_path, monkeypatch, server, classes):
    base, files = cifar[classes].SOURCE.base_folder, batches(classes)
    (tmp_path / "secret").write_text("kept")
    hostile = [(f"{base}/../../../evil", b"x"), (str(tmp_path / "absolute"), b"x"), (f"{base}/link", str(tmp_path)),
               (f"{base}/link/through", b"x"), (f"{base}/../../secret", b"overwritten")]
    server.files = {"c.tar.gz": tar_of([*hostile, *((f"{base}/{name}", content) for name, content in files.items())])}
    module = official(monkeypatch, classes, files, server.files["c.tar.gz"])
    monkeypatch.setattr(module.SOURCE, "url", server.url + "c.tar.gz", raising=False)
    assert fetch(module, tmp_path / "a" / "b") == 0 and server.served == ["c.tar.gz"]
    found = {path.name for path in (tmp_path / "a" / "b" / base).iterdir() if path.suffix != ".sha256"}
    assert found == {*files, module.SOURCE.filename, ".lock"}
    assert (tmp_path / "secret").read_text() == "kept" and {path.name for path in tmp_path.iterdir()} == {"a", "secret"}


def test_a_link_in_cifars_archive_is_not_followed_to_another_place(tmp_path, monkeypatch, capfd, server):
    base, files = cifar[10].SOURCE.base_folder, batches(10)
    (tmp_path / "outside").write_bytes(files["data_batch_1"])
    members = [(f"{base}/{name}", content) for name, content in files.items()]
    members[0] = (members[0][0], str(tmp_path / "outside"))
    server.files = {"c.tar.gz": tar_of(members)}
    module = official(monkeypatch, 10, files, server.files["c.tar.gz"])
    monkeypatch.setattr(module.SOURCE, "url", server.url + "c.tar.gz", raising=False)
    assert fetch(module, tmp_path / "data") == 2 and "data_batch_1" in one_error(capfd)


def test_emnists_archive_cannot_write_outside_of_its_folder(tmp_path, monkeypatch):
    """Four members by name are read, whatever else is in it, and never by a path from inside."""
    raw, files = tmp_path / "data" / "EMNIST" / "raw", files_of("EMNIST")
    raw.mkdir(parents=True)
    with zipfile.ZipFile(raw / "gzip.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"gzip/{name}.gz", gzip.compress(content))
        for name in ("../../../evil", "/tmp/evil-of-spinalnet", "gzip/../../evil.gz"):
            archive.writestr(name, b"x")
    monkeypatch.setattr(digits.SOURCE, "md5", hashlib.md5((raw / "gzip.zip").read_bytes()).hexdigest())
    assert fetch(digits, tmp_path / "data", "--no-download") == 0
    assert {path.name for path in raw.iterdir() if path.suffix != ".sha256"} == {*files, "gzip.zip", ".lock"}
    assert not os.path.exists("/tmp/evil-of-spinalnet") and {path.name for path in tmp_path.rglob("evil*")} == set()


def test_an_archive_with_another_checksum_is_not_unpacked(tmp_path, capsys):
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    with zipfile.ZipFile(raw / "gzip.zip", "w") as archive:
        archive.writestr("gzip/x.gz", b"x")
    assert fetch(digits, tmp_path, "--no-download") == 2
    assert "checksum" in one_error(capsys) and {path.name for path in raw.iterdir()} <= {"gzip.zip", ".lock"}
