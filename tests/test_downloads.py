"""Data from outside: what is damaged, hostile, stalled, read-only or fetched twice at once."""
import gzip
import hashlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import zipfile

import pytest
from conftest import ROOT, load_script


@pytest.mark.parametrize("script, folder, names", [
    ("CIFAR/cifar10", "cifar-10-batches-py", [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"]),
    ("CIFAR/cifar100", "cifar-100-python", ["train", "test", "meta"])])
def test_a_pickle_that_is_not_the_official_one_is_never_loaded(tmp_path, capsys, script, folder, names):
    """CIFAR comes as pickles, which can run anything; their checksums are verified before they are read."""
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    (tmp_path / "data" / folder).mkdir(parents=True)
    for name in names:
        (tmp_path / "data" / folder / name).write_bytes(pickle.dumps(Evil()))
    module = load_script(script)
    assert module.main(["--data-dir", str(tmp_path / "data"), "--no-download", "--quiet", "--results-dir", str(tmp_path / "r")]) == 2
    assert capsys.readouterr().err.startswith("error: ") and not marker.exists() and not (tmp_path / "r").exists()


def write_archive(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_an_archive_cannot_write_outside_of_its_folder(tmp_path, monkeypatch):
    """EMNIST's archive: four members by name are read, whatever else is in it, and never by a path from inside."""
    digits = load_script("EMNIST/emnist_digits")
    raw = tmp_path / "data" / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    names = [f"emnist-digits-{part}-{kind}-ubyte" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1")]
    members = {f"gzip/{name}.gz": gzip.compress(b"content") for name in names}
    write_archive(raw / "gzip.zip", members | {"../../../evil": b"x", "/tmp/evil-of-spinalnet": b"x", "gzip/../../evil.gz": b"x"})
    class Source:
        md5 = hashlib.md5((raw / "gzip.zip").read_bytes()).hexdigest()
        url = "http://localhost:1/"
    monkeypatch.setattr(digits, "SOURCE", Source)
    digits.unpack(raw, names, download=False)
    assert {path.name for path in raw.iterdir()} == {*names, "gzip.zip", "gzip.zip.lock"}
    assert not os.path.exists("/tmp/evil-of-spinalnet") and not list(tmp_path.glob("evil*")) and not list((tmp_path / "data").glob("evil*"))


def test_an_archive_with_another_checksum_is_not_unpacked(tmp_path, capsys):
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    write_archive(raw / "gzip.zip", {"gzip/x.gz": b"x"})
    digits = load_script("EMNIST/emnist_digits")
    assert digits.main(["--data-dir", str(tmp_path), "--no-download", "--quiet"]) == 2
    assert "checksum" in capsys.readouterr().err and {path.name for path in raw.iterdir()} <= {"gzip.zip", "gzip.zip.lock"}


def test_a_server_that_stalls_is_an_error_and_not_a_wait(tmp_path, monkeypatch, capsys):
    digits = load_script("EMNIST/emnist_digits")
    server = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    class Source:
        md5, url = "0" * 32, f"http://127.0.0.1:{server.getsockname()[1]}/gzip.zip"
    monkeypatch.setattr(digits, "SOURCE", Source)
    original, asked = socket.setdefaulttimeout, []
    monkeypatch.setattr(digits.socket, "setdefaulttimeout", lambda seconds: (asked.append(seconds), original(0.3)))
    try:
        began = time.monotonic()
        assert digits.main(["--data-dir", str(tmp_path), "--quiet"]) == 2 and time.monotonic() - began < 20
    finally:
        original(None)
        server.close()
    assert asked == [60] and "timed out" in capsys.readouterr().err


def test_one_process_at_a_time_fetches(tmp_path, capsys):
    optdigits = load_script("MNIST/optdigits")
    order = []

    def second():
        with optdigits.one_at_a_time(tmp_path):
            order.append("second")

    with optdigits.one_at_a_time(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"] and "waiting for another process" in capsys.readouterr().err


def test_a_folder_that_cannot_be_locked_is_no_error(tmp_path):
    optdigits = load_script("MNIST/optdigits")
    (tmp_path / "file").write_text("")
    with optdigits.one_at_a_time(tmp_path / "file" / "below"):
        pass


def test_complete_data_in_a_read_only_folder_are_enough(real_data, tmp_path):
    folder = tmp_path / "readonly"
    folder.mkdir()
    for command in (["mount", "--bind", str(real_data), str(folder)], ["mount", "-o", "remount,ro,bind", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)
            pytest.skip(f"needs the right to mount a folder read-only: {done.stderr.strip()}")
    try:
        done = subprocess.run([sys.executable, str(ROOT / "MNIST/mnist.py"), "--data-dir", str(folder), "--limit", "200", "--epochs", "1",
                               "--quiet", "--results-dir", str(tmp_path / "r")], capture_output=True, text=True)
        assert done.returncode == 0 and len(list((tmp_path / "r").rglob("*.jsonl"))) == 2, done.stderr
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
