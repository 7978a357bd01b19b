"""The scripts of EMNIST/: what differs from MNIST/mnist.py, which is facts, labels and the archive. Everything runs offline."""
import functools
import gzip
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
import torch
from conftest import PACKED, ROOT, load_script
from torchvision.datasets import EMNIST

SPLITS = {"digits": 10, "letters": 26, "balanced": 47}
modules = {split: load_script(f"EMNIST/emnist_{split}") for split in SPLITS}


# ---- Counts and facts ------------------------------------------------------------------------------------------------------
OUTPUTS = [("digits", "published", 10), ("digits", "corrected", 10), ("letters", "published", 62), ("letters", "corrected", 26),
           ("balanced", "published", 62), ("balanced", "corrected", 47)]
VGG5 = {10: (3_646_154, 3_629_770, 136_192, 119_808), 62: (3_672_830, 3_656_446, 162_816, 146_432),  # emnist.md section 5
        26: (3_654_362, 3_637_978, 144_384, 128_000), 47: (3_665_135, 3_648_751, 155_136, 138_752)}
CNN = 260 + 5_020  # convolutions, mnist.md section 3.1


def size(module, *arguments, **keywords):
    network = module.build_network(*arguments, **keywords)
    return sum(p.numel() for p in network.parameters()), module.count_fc_multiplications(network, torch.zeros(1, 1, 28, 28))


@pytest.mark.parametrize("split, protocol, outputs", OUTPUTS)
def test_counts_equal_the_specification(split, protocol, outputs):
    count = functools.partial(size, modules[split], protocol=protocol)
    fc, spinal, fc_products, spinal_products = VGG5[outputs]
    assert count("vgg5", "fc") == (fc, fc_products) and count("vgg5", "spinal") == (spinal, spinal_products)
    assert count("cnn", "fc") == (CNN + 321 * 50 + 51 * outputs, 320 * 50 + 50 * outputs)
    for width in (8, 10):  # mnist.md section 1.1
        weights = 160 * width + 5 * (160 + width) * width + 6 * width * outputs
        assert count("cnn", "spinal", width=width) == (CNN + weights + 6 * width + outputs, weights)
    assert count("cnn", None) == count("cnn", "spinal", width=8)


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_counts_of_digits_equal_the_numbers_of_section_3(protocol):
    count = functools.partial(size, modules["digits"], protocol=protocol)
    assert count("cnn", "fc") == (21_840, 16_500) and count("cnn", "spinal", width=10) == (16_050, 10_700)
    assert count("cnn", "spinal") == (13_818, 8_480) and count("arch2", None) == (677_640, 671_000)


@pytest.mark.parametrize("split, protocol, outputs", OUTPUTS)
def test_the_counts_in_the_docstring_are_those_of_the_networks(split, protocol, outputs):
    count, text = functools.partial(size, modules[split], protocol=protocol), modules[split].__doc__
    if split == "digits":
        return
    (line,) = re.findall(rf"^\| {outputs} \({protocol}\) .*$", text, re.M)
    heads = [("cnn", "fc", None), ("cnn", "spinal", 8), ("cnn", "spinal", 10), ("vgg5", "fc", None), ("vgg5", "spinal", None)]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == \
        [f"{count(network, head, width=width)[0]:,}" for network, head, width in heads]


def test_facts():
    assert {split: (m.TRAIN_IMAGES, m.TEST_IMAGES) for split, m in modules.items()} == \
        {"digits": (240_000, 40_000), "letters": (124_800, 20_800), "balanced": (112_800, 18_800)}
    assert {split: m.RECIPES["vgg5"].epochs for split, m in modules.items()} == {"digits": 50, "letters": 200, "balanced": 200}
    for split, module in modules.items():
        cnn, vgg5 = module.RECIPES["cnn"], module.RECIPES["vgg5"]
        assert (cnn.epochs, cnn.batch_size, cnn.learning_rate, cnn.optimizer, cnn.selection) == (8, 64, 0.01, "SGD", "last")
        assert (vgg5.batch_size, vgg5.learning_rate, vgg5.optimizer, vgg5.rule.power) == (100, 0.005, "Adam", 3)
        assert vgg5.augment == ("perspective", "rotation10") and not cnn.augment
        assert cnn.norm == vgg5.norm == (0.1307, 0.3081)
        assert ("arch2" in module.RECIPES) == (split == "digits")
        assert len(EMNIST.classes_split_dict[split]) == SPLITS[split] + (split == "letters")  # torchvision's "N/A"


def test_arch2_keeps_its_rate_as_published_and_lowers_it_when_corrected():  # emnist.md Q2
    recipe = modules["digits"].RECIPES["arch2"]
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.spinal[1]) == (200, 64, 0.1, 50)
    for improved, published, corrected in ((True, 0.1, 0.1), (False, 0.1, 0.08)):
        assert recipe.rule.next(3, improved, 0.1, 0.1, 0.5) == published
        assert recipe.corrected_rule.next(3, improved, 0.1, 0.1, 0.5) == pytest.approx(corrected)


def test_letters_and_balanced_have_no_arch2(capsys):
    assert modules["letters"].main(["--network", "arch2"]) == 2
    assert "--network" in capsys.readouterr().err
    with pytest.raises(ValueError):
        modules["balanced"].build_network("arch2", "spinal")


@pytest.mark.parametrize("split", SPLITS)
def test_the_paper_numbers_in_a_script_are_those_of_the_table(split):
    import csv
    printed = {}
    for row in csv.DictReader(open(ROOT / "results/paper.csv", encoding="utf-8")):
        if row["script"] == f"emnist_{split}" and row["table"] == "II" and row["metric"].startswith("accuracy_"):
            key = (row["network"], row["head"], int(row["layers"]), int(row["width"]))
            printed.setdefault(key, {})[row["metric"]] = float(row["value"])
            assert int(row["epochs"]) == modules[split].RECIPES[row["network"]].epochs
            assert f"{float(row['value']):.2f}" in modules[split].__doc__ and row["dataset"] == modules[split].DATASET
    assert len(printed) == 5
    assert modules[split].PAPER == {key: (v["accuracy_avg_pct"], v["accuracy_best_pct"]) for key, v in printed.items()}


def blocks_of(path):
    """Text of every shared block by its name, and the text outside of them."""
    fence = r"^# >>> shared: (\w+) .*?^# <<< shared: \1$"
    text = (ROOT / path).read_text(encoding="utf-8")
    return {match[1]: match[0] for match in re.finditer(fence, text, re.M | re.S)}, re.sub(fence, "", text, flags=re.M | re.S)


def test_scripts_differ_from_mnist_outside_of_shared_blocks_only():
    original, _ = blocks_of("MNIST/mnist.py")
    del original["torchvision_source"]
    scripts = {split: blocks_of(f"EMNIST/emnist_{split}.py") for split in SPLITS}
    source = scripts["digits"][0]["emnist_source"]
    for blocks, rest in scripts.values():
        assert blocks == original | {"emnist_source": source}
        assert "def " not in rest and "class " not in rest.split('"""', 2)[2]  # only the docstring and facts are left


# ---- The archive -----------------------------------------------------------------------------------------------------------
def idx(array, magic):
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def contents(split, train=94, test=47):
    """The four files of a split in the real format: random images, each class present, letters from 1."""
    rng, files = np.random.default_rng(len(split)), {}
    for part, count in (("train", train), ("test", test)):
        labels = rng.permutation(np.arange(count) % SPLITS[split]) + (split == "letters")
        files[f"emnist-{split}-{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28)), 2051)
        files[f"emnist-{split}-{part}-labels-idx1-ubyte"] = idx(labels, 2049)
    return files


@pytest.fixture(scope="module")
def archive():
    """A small gzip.zip with the members of NIST's."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as members:
        members.writestr("gzip/", b"")
        for split in SPLITS:
            for name, content in contents(split).items():
                members.writestr(f"gzip/{name}.gz", gzip.compress(content))
        members.writestr("gzip/emnist-letters-mapping.txt", b"1 65 97\n")
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        """Sends the next of the server's answers, the last one again and again; (answer, n) breaks off after n bytes."""
        served = self.server.gets
        answer = self.server.answers[min(len(served), len(self.server.answers) - 1)]
        if self.headers.get("Method") != "HEAD":  # torchvision asks in this way whether there is a redirect
            served.append(self.path)
            time.sleep(self.server.delay)
        body, sent = answer if isinstance(answer, tuple) else (answer, None)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body[:sent])
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server(archive, monkeypatch):
    """An EMNIST server on this machine; `gets` are the downloads so far."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.answers, served.gets, served.delay = [archive], [], 0
        served.url, served.md5 = f"http://127.0.0.1:{served.server_port}/gzip.zip", hashlib.md5(archive).hexdigest()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(EMNIST, "url", served.url)
        monkeypatch.setattr(EMNIST, "md5", served.md5)
        threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield served
        served.shutdown()


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(EMNIST, "url", "http://127.0.0.1:9/gzip.zip")  # the discard port: nobody answers


def fetch(split, folder, *more):
    return modules[split].main(["--fetch-only", "--data-dir", str(folder), "--results-dir", str(folder / "results"), *more])


def options_of(split, folder, *more):
    return modules[split].parse_arguments(["--data-dir", str(folder), "--results-dir", str(folder / "results"), *more])


def unpacked(folder):
    raw = folder / "EMNIST" / "raw"
    return {path.name: path.read_bytes() for path in raw.glob("*")
            if path.name not in ("gzip.zip", ".lock") and path.suffix not in (".sha256", ".damaged")}


def write_raw(folder, split, **counts):
    raw = folder / "EMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in contents(split, **counts).items():
        (raw / name).write_bytes(content)
    return folder


def one_error(text):
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in text
    return error


def test_the_real_address_and_checksum_are_torchvisions():
    assert EMNIST.url.startswith("https://") and EMNIST.url.endswith("/gzip.zip") and re.fullmatch("[0-9a-f]{32}", EMNIST.md5)


def test_one_download_serves_three_scripts_and_only_the_asked_split_is_unpacked(tmp_path, server, capfd):
    expected = {}
    for split in SPLITS:
        assert fetch(split, tmp_path) == 0
        expected |= contents(split)
        assert unpacked(tmp_path) == expected
    text = capfd.readouterr().err
    assert len(server.gets) == 1 and text.count("fetching") == 1 and "%" in text  # announced once, with a bar
    assert text.index("fetching") < text.index("%") and "error" not in text
    server.answers = [b""]
    for split in SPLITS:
        assert fetch(split, tmp_path) == 0 and modules[split].load_arrays(options_of(split, tmp_path))
    assert len(server.gets) == 1


def test_an_archive_that_is_there_is_unpacked_without_network(tmp_path, server, archive):
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "gzip.zip").write_bytes(archive)
    assert fetch("letters", tmp_path, "--no-download") == 0 and not server.gets
    assert unpacked(tmp_path) == contents("letters")


def test_a_missing_member_is_unpacked_and_the_others_are_left_alone(tmp_path, server):
    write_raw(tmp_path, "digits")
    raw = tmp_path / "EMNIST" / "raw"
    (raw / "emnist-digits-test-labels-idx1-ubyte").unlink()
    kept = raw / "emnist-digits-train-images-idx3-ubyte"
    before = kept.stat()
    assert fetch("digits", tmp_path) == 0 and unpacked(tmp_path) == contents("digits")
    assert kept.stat().st_mtime_ns == before.st_mtime_ns and kept.stat().st_ino == before.st_ino


@pytest.mark.parametrize("left", [lambda whole: whole[:-1000], lambda whole: whole[:1000] + b"x" + whole[1001:],
                                  lambda whole: b""], ids=["truncated", "altered", "empty"])
def test_a_damaged_archive_is_fetched_anew(tmp_path, server, archive, left):
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "gzip.zip").write_bytes(left(archive))
    (raw / "gzip.zip.part").write_bytes(archive[:500])  # a process was killed during its download
    assert fetch("balanced", tmp_path) == 0 and len(server.gets) == 1
    assert unpacked(tmp_path) == contents("balanced") and (raw / "gzip.zip").read_bytes() == archive


def test_a_transfer_that_breaks_off_begins_anew(tmp_path, server, archive, capfd):
    server.answers = [(archive, len(archive) // 2), archive]
    assert fetch("letters", tmp_path) == 0 and len(server.gets) == 2
    assert unpacked(tmp_path) == contents("letters") and capfd.readouterr().err.count("fetching") == 2


@pytest.mark.parametrize("answer", [b"<html>blocked by a proxy</html>", "other", "cut"])
def test_what_is_not_the_archive_is_refused_and_nothing_is_left(tmp_path, server, archive, capfd, answer):
    server.answers = [{"other": archive + b"x", "cut": (archive, 3_000)}.get(answer, answer)]
    assert fetch("letters", tmp_path) == 2
    error = one_error(capfd.readouterr().err)
    assert "corrupted" in error and server.url in error and "EMNIST (Letters)" in error
    assert not unpacked(tmp_path) and not (tmp_path / "EMNIST/raw/gzip.zip").exists() and not (tmp_path / "results").exists()
    server.answers = [archive]
    assert fetch("letters", tmp_path) == 0  # the next call begins from nothing


def test_ctrl_c_during_the_download_leaves_nothing(tmp_path, server, capfd, monkeypatch):
    def interrupted(*_, **__):
        (part,) = (tmp_path / "EMNIST/raw").glob("*.part")
        raise KeyboardInterrupt

    monkeypatch.setattr(modules["letters"].urllib.request, "urlopen", interrupted)
    assert fetch("letters", tmp_path) == 130
    assert not unpacked(tmp_path) and "Traceback" not in capfd.readouterr().err


def test_a_full_disk_while_unpacking_leaves_no_half_file(tmp_path, server, capfd, monkeypatch):
    def full(path, content):
        path.open("wb").write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    assert fetch("letters", tmp_path) == 2
    assert "No space left" in one_error(capfd.readouterr().err) and not unpacked(tmp_path)


def test_no_network_is_one_sentence(tmp_path, no_network, capfd):
    assert fetch("letters", tmp_path) == 2
    error = one_error(capfd.readouterr().err)
    assert "check the network" in error and not unpacked(tmp_path)


def test_no_download_without_data_is_one_sentence_and_writes_nothing(tmp_path, server, capfd):
    assert fetch("letters", tmp_path / "data", "--no-download") == 2
    error = one_error(capfd.readouterr().err)
    assert "without --no-download" in error and not server.gets and not (tmp_path / "data").exists()
    write_raw(tmp_path, "digits")
    assert fetch("letters", tmp_path, "--no-download") == 2  # another split is no help
    (tmp_path / "EMNIST/raw/gzip.zip").write_bytes(b"half an archive")
    assert fetch("letters", tmp_path, "--no-download") == 2
    assert "checksum" in capfd.readouterr().err and not server.gets


def test_complete_files_in_a_read_only_folder_need_no_network(tmp_path, no_network):
    write_raw(tmp_path, "letters")
    raw = tmp_path / "EMNIST" / "raw"
    before = sorted(path.name for path in raw.iterdir())
    for path in (*raw.iterdir(), raw):
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        assert fetch("letters", tmp_path) == 0
    finally:
        raw.chmod(0o755)
    assert sorted(path.name for path in raw.iterdir()) == before  # also as root, whom permissions do not stop


def test_processes_at_once_download_once_and_do_not_damage_each_other(tmp_path, server, capfd):
    server.delay = 1.0
    forks = multiprocessing.get_context("fork")
    processes = [forks.Process(target=lambda split=split: modules[split].load_arrays(options_of(split, tmp_path)))
                 for split in ("letters", "digits", "letters", "balanced")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(server.gets) == 1 and unpacked(tmp_path) == contents("letters") | contents("digits") | contents("balanced")
    text = capfd.readouterr().err
    assert text.count("fetching /") == 1 and text.count("waiting for another process") == 3


@pytest.mark.parametrize("damage", ["truncated", "html", "empty", "labels", "counts"])
def test_damaged_files_are_named_before_training(tmp_path, capsys, damage):
    raw = write_raw(tmp_path, "letters") / "EMNIST" / "raw"
    images, labels = (raw / f"emnist-letters-train-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    if damage == "labels":
        labels.write_bytes(idx(np.full(94, 62), 2049))
    elif damage == "counts":
        labels.write_bytes(idx(np.ones(93), 2049))
    else:
        images.write_bytes({"truncated": images.read_bytes()[:-100], "html": b"<html>404 not found</html>", "empty": b""}[damage])
    assert fetch("letters", tmp_path) == 2
    assert str(tmp_path) in one_error(capsys.readouterr().err) and not (tmp_path / "results").exists()


def test_a_label_0_is_damage_where_labels_are_shifted(tmp_path, capsys):
    raw = write_raw(tmp_path, "letters") / "EMNIST" / "raw"
    (raw / "emnist-letters-test-labels-idx1-ubyte").write_bytes(idx(np.arange(47) % 26, 2049))
    assert fetch("letters", tmp_path, "--protocol", "corrected") == 2
    assert "the test set" in one_error(capsys.readouterr().err)


# ---- Labels and pixels -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split, protocol, outputs", OUTPUTS)
def test_labels_are_as_delivered_or_start_at_0_and_pixels_are_never_turned(tmp_path, split, protocol, outputs):
    write_raw(tmp_path, split)
    arrays = modules[split].load_arrays(options_of(split, tmp_path, "--protocol", protocol))
    for train, images, labels in ((True, *arrays[:2]), (False, *arrays[2:])):
        delivered = EMNIST(tmp_path, split=split, train=train)
        assert torch.equal(images, delivered.data)
        shift = int(split == "letters" and protocol == "corrected")
        assert labels.dtype == torch.int64 and torch.equal(labels, delivered.targets - shift)
    first = int(split == "letters" and protocol == "published")
    assert arrays[1].unique().tolist() == list(range(first, first + SPLITS[split]))
    data = modules[split].load_data(options_of(split, tmp_path, "--protocol", protocol), torch.device("cpu"))
    assert torch.equal(data.test.images[:, 0], EMNIST(tmp_path, split=split, train=False).data)
    if protocol == "published":
        assert torch.equal(data.train.images[:, 0], EMNIST(tmp_path, split=split, train=True).data)
        assert data.norm == (0.1307, 0.3081)
    else:
        pixels = data.train.images.double() / 255
        assert data.norm == (pytest.approx(float(pixels.mean()), abs=1e-4), pytest.approx(float(pixels.std()), abs=1e-4))
    assert max(int(part.labels.max()) for part in (data.train, data.test)) < outputs == modules[split].CLASSES[protocol]


@pytest.mark.parametrize("network, split, protocol, outputs", [("cnn", *row) for row in OUTPUTS] + [
    ("vgg5", "letters", "published", 62), ("vgg5", "balanced", "corrected", 47)])
def test_files_in_the_real_format_are_trained_on_and_labelled_for_what_they_are(tmp_path, network, split, protocol, outputs):
    write_raw(tmp_path, split, train=48, test=20)
    command = ["--data-dir", str(tmp_path), "--results-dir", str(tmp_path), "--epochs", "1", "--quiet"]
    assert modules[split].main([*command, "--protocol", protocol, "--network", network]) == 0
    paths = sorted((tmp_path / "logs" / f"emnist_{split}").glob("*"))
    for path, head, parameters in zip(paths, ("fc", "spinal"), VGG5[outputs][:2], strict=True):
        start = json.loads(path.read_text().splitlines()[0])
        assert f"-data{start['data']['sha256'][:8]}-" in path.name and start["data"]["official"] is False
        assert start["settings"]["head"] == head and start["settings"]["dataset"] == f"EMNIST ({split.capitalize()})"
        assert network == "cnn" or start["parameters"] == parameters


# ---- Real data -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def real_subset(tmp_path_factory):
    """The folder of a real EMNIST subset, to be given as --data-dir; skips where there is none."""
    if os.environ.get("SPINALNET_DATA"):
        folder = os.environ["SPINALNET_DATA"]
        if not os.path.isdir(f"{folder}/subset/EMNIST/raw"):
            pytest.skip(f"needs real data: there is no subset/EMNIST in SPINALNET_DATA, {folder}")
        return f"{folder}/subset"
    if not (PACKED / "unpack.py").exists():
        pytest.skip(f"needs real data: set SPINALNET_DATA to an unpacked data root, or put the packed sets at {PACKED}")
    folder = tmp_path_factory.mktemp("emnist")
    subprocess.run([sys.executable, PACKED / "unpack.py", folder, "emnist-subset"], check=True)
    return folder / "subset"


@pytest.mark.parametrize("split, counts, mean, std", [
    ("letters", (42_900, 7_150), 0.1721, 0.3308), ("digits", (30_000, 5_000), 0.1734, 0.3318)])
def test_the_real_subset_is_read_and_not_taken_for_the_official_set(real_subset, tmp_path, no_network, split, counts, mean, std):
    module = modules[split]
    published, corrected = (module.load_data(module.parse_arguments(
        ["--data-dir", str(real_subset), "--results-dir", str(tmp_path), "--protocol", protocol]), torch.device("cpu"))
        for protocol in ("published", "corrected"))
    assert (len(published.train.labels), len(published.test.labels)) == counts and published.facts["official"] is False
    assert published.test.labels.unique().tolist() == list(range(split == "letters", SPLITS[split] + (split == "letters")))
    assert corrected.test.labels.unique().tolist() == list(range(SPLITS[split]))
    assert corrected.norm == (pytest.approx(mean, abs=2e-3), pytest.approx(std, abs=2e-3))
    assert corrected.facts["heldout"] == counts[0] // 12


def test_cnn_learns_real_digits(real_subset, tmp_path):
    command = ["--data-dir", str(real_subset), "--no-download", "--results-dir", str(tmp_path), "--quiet"]
    assert modules["digits"].main([*command, "--limit", "6000", "--epochs", "2", "--head", "fc"]) == 0
    (path,) = (tmp_path / "logs/emnist_digits").glob("*.jsonl")
    assert json.loads(path.read_text().splitlines()[-1])["selected_test_accuracy_pct"] > 60
