"""Wrong data and wrong commands: one clear sentence, exit status 2, nothing written."""

import gzip
import hashlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy
import pytest
from torchvision import datasets

from conftest import FAMILY, ROOT, SCRIPTS, load_script, one_error, run
from made_up_data import files_of, idx, pictures, write_data

FILES = [script for script in SCRIPTS if script != "MNIST/optdigits"]
QUICK = ["--epochs", "1", "--quiet"]
mnist = load_script("MNIST/mnist")


def refused(script: str, folder: Path, results: Path, capsys) -> str:
    """The sentence by which a script refuses these data. It writes nothing."""
    assert run(script, folder, results, *QUICK) == 2
    printed = capsys.readouterr()
    error = one_error(printed.err)
    module = load_script(script)
    assert error.startswith("error: ") and module.DATASET in error and not printed.out
    assert str((folder / module.FIRST_FILE).parent) in error and "--no-download" in error
    assert Path(module.FIRST_FILE).name in error and not results.exists()
    return error


# ---- Files --------------------------------------------------------------------------------------
def missing(folder: Path, files: list[Path], script: str) -> None:
    shutil.rmtree(files[0].parent)


def one_missing(folder: Path, files: list[Path], script: str) -> None:
    files[3].unlink()


def cut(folder: Path, files: list[Path], script: str) -> None:
    files[0].write_bytes(files[0].read_bytes()[:-100])


def empty(folder: Path, files: list[Path], script: str) -> None:
    files[2].write_bytes(b"")


def page(folder: Path, files: list[Path], script: str) -> None:
    files[1].write_bytes(b"<html>404 not found</html>")


def swapped(folder: Path, files: list[Path], script: str) -> None:
    files[0].write_bytes(files[1].read_bytes())


def write_labels(file: Path, labels: numpy.ndarray) -> None:
    if file.name.endswith("idx2-int"):
        labels = numpy.stack([labels] * 8, 1)
    file.write_bytes(idx(labels))


def other_count(folder: Path, files: list[Path], script: str) -> None:
    """Labels of a longer set."""
    write_labels(files[1], pictures(script, train=200)[1])


def too_large(folder: Path, files: list[Path], script: str) -> None:
    labels = pictures(script)[3]
    labels[-1] = 200
    write_labels(files[3], labels)


def below_the_first(folder: Path, files: list[Path], script: str) -> None:
    """A letter 0, which EMNIST does not have; the label 255 in the other sets."""
    labels = pictures(script)[3]
    labels[-1] = labels.min() - 1
    write_labels(files[3], labels % 256)


def class_missing(folder: Path, files: list[Path], script: str) -> None:
    labels = pictures(script)[1]
    labels[labels == 3] = 4
    write_labels(files[1], labels)


DAMAGES = [missing, one_missing, cut, empty, page, swapped, other_count, too_large]
DAMAGES += [below_the_first, class_missing]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("script", FILES)
def test_missing_and_damaged_data_are_one_sentence(script, damage, tmp_path, capsys):
    folder = write_data(tmp_path / "data", script)
    damage(folder, [folder / name for name in files_of(script)], script)
    refused(script, folder, tmp_path / "results", capsys)


def test_images_of_another_size_are_one_sentence(tmp_path, capsys):
    folder = write_data(tmp_path / "data", "MNIST/mnist")
    (folder / files_of("MNIST/mnist")[0]).write_bytes(idx(numpy.zeros((60, 8, 8), "u1")))
    assert run("MNIST/mnist", folder, tmp_path / "results", *QUICK) == 2
    assert one_error(capsys.readouterr().err) and not (tmp_path / "results").exists()


def test_official_counts_with_other_content_are_refused(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mnist, "COUNTS", [132, 60])
    assert "not the official ones" in refused("MNIST/mnist", data, tmp_path / "results", capsys)


OTHERS = [
    script for script in FILES if not script.endswith("/mnist") and "arch2_mnist" not in script
]


@pytest.mark.parametrize("name", ["MNIST", "Fashion-MNIST"])
@pytest.mark.parametrize("script", OTHERS)
def test_another_data_set_in_the_folder_is_refused(script, name, tmp_path, capsys, monkeypatch):
    """Its images are known by their hash, with labels that would pass."""
    module = load_script(script)
    folder = write_data(tmp_path / "data", script)
    if name == module.DATASET:
        pytest.skip("this is its own set")
    digest = hashlib.sha256(pictures(script)[0].tobytes()).hexdigest()[:16]
    monkeypatch.setitem(module.KNOWN_IMAGES, digest, name)
    assert f"images of {name}" in refused(script, folder, tmp_path / "results", capsys)


@pytest.mark.parametrize("source, name", [("MNIST", "MNIST"), ("FashionMNIST", "Fashion-MNIST")])
@pytest.mark.parametrize("script", ["MNIST/kmnist", "MNIST/arch2_kmnist"])
def test_real_files_of_another_set_are_refused(script, source, name, real_data, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/KMNIST").symlink_to(real_data / source)
    assert f"images of {name}" in refused(script, tmp_path / "data", tmp_path / "out", capsys)


@pytest.mark.parametrize("which", ["official", "another archive", "another content", "none"])
@pytest.mark.parametrize("script", ["MNIST/kmnist", "MNIST/qmnist"])
def test_archives_beside_the_files_are_compared(script, which, tmp_path, capsys, monkeypatch):
    """The four archives stay where torchvision unpacked them; their md5 is known."""
    module = load_script(script)
    folder = write_data(tmp_path / "data", script, packed=which != "none")
    archives = {}
    for name in module.ARCHIVES:
        file = (folder / files_of(script)[0]).with_name(Path(name).name)
        if file.exists():
            archives[name] = hashlib.md5(file.read_bytes()).hexdigest()
    if archives:
        monkeypatch.setattr(module, "ARCHIVES", archives)
    if which == "another archive":
        archives[next(iter(archives))] = "0" * 32
    elif which == "another content":
        images = folder / files_of(script)[0]
        images.write_bytes(idx(pictures(script)[0][::-1]))
    if which.startswith("another"):
        error = refused(script, folder, tmp_path / "results", capsys)
        assert "is not the official one, or was not unpacked" in error
        return
    assert run(script, folder, tmp_path / "results", *QUICK, "--head", "fc") == 0
    assert ("data not verified" in capsys.readouterr().out) == (which == "none")


@pytest.mark.parametrize("which", ["official", "another archive", "another content", "none"])
@pytest.mark.parametrize("script", ["EMNIST/emnist_digits", "EMNIST/emnist_letters"])
def test_the_zip_beside_the_files_is_compared(script, which, tmp_path, capsys, monkeypatch):
    """EMNIST has one archive for all its splits."""
    folder = write_data(tmp_path / "data", script)
    files = [folder / name for name in files_of(script)]
    archive = files[0].with_name("gzip.zip")
    if which != "none":
        with zipfile.ZipFile(archive, "w") as members:
            for file in files:
                members.writestr(f"gzip/{file.name}.gz", gzip.compress(file.read_bytes()))
        digest = hashlib.md5(archive.read_bytes()).hexdigest()
        wrong = which == "another archive"
        monkeypatch.setattr(datasets.EMNIST, "md5", "0" * 32 if wrong else digest)
    if which == "another content":
        files[1].write_bytes(idx(pictures(script)[1][::-1]))
    if which.startswith("another"):
        error = refused(script, folder, tmp_path / "results", capsys)
        assert "gzip.zip is not the official one" in error or "is not the one in gzip.zip" in error
        return
    assert run(script, folder, tmp_path / "results", *QUICK, "--head", "fc") == 0
    assert ("data not verified" in capsys.readouterr().out) == (which == "none")


@pytest.mark.parametrize("level", [1, 2])
def test_python_without_asserts_and_docstrings_behaves_the_same(level, tmp_path, capsys):
    """What `python -O` and `python -OO` make of the text."""
    folder = write_data(tmp_path / "data", "MNIST/mnist")
    text = (ROOT / "MNIST/mnist.py").read_text()
    module = load_script("MNIST/mnist", text, optimize=level)
    assert (module.__doc__ is None) == (level == 2)
    flags = ["--data-dir", str(folder), "--results-dir", str(tmp_path / "out"), *QUICK]
    assert module.main([*flags, "--no-download", "--device", "cpu"]) == 0
    assert "Spinal - FC: " in capsys.readouterr().out
    too_large(folder, [folder / name for name in files_of("MNIST/mnist")], "MNIST/mnist")
    assert module.main([*flags, "--no-download", "--device", "cpu", "--overwrite"]) == 2
    assert "a class is missing" in one_error(capsys.readouterr().err)


def test_a_tilde_is_the_home_folder(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets").symlink_to(data)
    flags = ["--data-dir=~/sets", "--results-dir=~/out", "--no-download", *QUICK, "--head", "fc"]
    assert mnist.main([*flags, "--device", "cpu"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["out", "sets"]


def test_fetch_only_checks_the_data_and_trains_nothing(data, tmp_path, capsys):
    for script in SCRIPTS:
        assert run(script, data, tmp_path / "results", "--fetch-only") == 0
    assert not (tmp_path / "results").exists() and not capsys.readouterr().out


@pytest.mark.parametrize("place", ["data", "results"])
def test_a_file_in_the_way_is_one_sentence(place, data, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    folders = {"data": data, "results": tmp_path / "results"} | {place: tmp_path / "file"}
    assert run("MNIST/mnist", folders["data"], folders["results"], *QUICK) == 2
    assert "file" in one_error(capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "no folder"


# ---- Downloads from a server on this machine ----------------------------------------------------
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.server.files.get(self.path[1:])
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_):
        """Nothing is printed."""


@pytest.fixture
def server(monkeypatch):
    """MNIST's four files by name, packed; torchvision takes them for the official ones."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.files = {}
        for name, array in zip(files_of("MNIST/mnist"), pictures("MNIST/mnist"), strict=True):
            served.files[f"{Path(name).name}.gz"] = gzip.compress(idx(array))
        md5 = [(name, hashlib.md5(x).hexdigest()) for name, x in served.files.items()]
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{served.server_port}/"])
        monkeypatch.setattr(datasets.MNIST, "resources", md5)
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield served
        served.shutdown()


@pytest.mark.parametrize("sent", ["all", "nothing", "another file", "a page"])
def test_what_is_fetched_is_checked_and_fetched_once(tmp_path, capsys, server, sent):
    first = next(iter(server.files))
    if sent == "nothing":
        server.files.clear()
    elif sent == "another file":
        server.files[first] = gzip.compress(b"something else")
    elif sent == "a page":
        server.files[first] = b"<html>blocked by a proxy</html>"
    flags = ["--data-dir", str(tmp_path / "data"), "--results-dir", str(tmp_path / "results")]
    assert mnist.main([*flags, "--fetch-only", "--device", "cpu"]) == (0 if sent == "all" else 2)
    server.files.clear()
    if sent == "all":
        assert mnist.main([*flags, "--fetch-only", "--device", "cpu"]) == 0  # it is there
    else:
        error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert len(error) == 1 and "MNIST cannot be had from" in error[0]
    assert not (tmp_path / "results").exists()


# ---- Commands -----------------------------------------------------------------------------------
WRONG = [  # flags, and what the sentence names
    *[(f"--{name} {x}", f"--{name}") for name in ("epochs", "width", "runs") for x in ("0", "x")],
    *[(f"--lr {x}", "--lr") for x in ("0", "-0.1", "x", "-1e400")],
    *[(f"--fc-dropout {x}", "dropout") for x in ("-0.1", "1.5", "nan", "x")],
    ("--batch-size -1", "--batch-size"),
    ("--layers -3", "--layers"),
    ("--limit 0", "--limit"),
    ("--epochs 1e3", "--epochs"),
    ("--seed -1", "--seed"),
    ("--seed 1.5", "--seed"),
    ("--network lenet", "--network"),
    ("--head spinel", "--head"),
    ("--protocol mended", "--protocol"),
    ("--precision fp16", "--precision"),
    ("--device gpu", "--device gpu"),
    ("--device cuda:99", "--device cuda:99"),
    ("--device meta", "meta"),
    ("--nonsense", "--nonsense"),
    ("extra", "extra"),
]


def check_refused(flags: str, named: str, data: Path, tmp_path: Path, capsys) -> None:
    assert run("MNIST/mnist", data, tmp_path / "results", *QUICK, *flags.split()) == 2
    assert named in one_error(capsys.readouterr().err) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags, named", WRONG)
def test_a_wrong_command_is_one_sentence(flags, named, data, tmp_path, capsys):
    check_refused(flags, named, data, tmp_path, capsys)


@pytest.mark.parametrize("rate", ["nan", "inf"])
def test_a_rate_that_is_no_number_is_refused(rate, data, tmp_path, capsys):
    check_refused(f"--lr {rate}", "--lr", data, tmp_path, capsys)


@pytest.mark.parametrize("script", SCRIPTS)
def test_sizes_that_a_network_cannot_have_are_one_sentence(script, data, tmp_path, capsys):
    flags = ["--layers", "9"] + ["--head", "fc"] * (script in FAMILY)
    assert run(script, data, tmp_path / "results", *QUICK, *flags) == 2
    assert "--layers" in one_error(capsys.readouterr().err)
    assert not (tmp_path / "results").exists()


def test_ctrl_c_while_torch_is_imported_is_no_traceback(tmp_path):
    """A module that stands in for numpy says when the imports have begun."""
    stand_in = 'import pathlib, time\npathlib.Path("begun").touch()\ntime.sleep(60)\n'
    (tmp_path / "numpy.py").write_text(stand_in)
    more = {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, ROOT / "MNIST/mnist.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | more, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and not error
