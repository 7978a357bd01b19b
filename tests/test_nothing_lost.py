"""Runs survive what happens to them: kills at any point, torn checkpoints, full disks, twins. `make kill-test` does more."""
import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, load_script

kill_test = load_script("tools/kill_test")
optdigits = load_script("MNIST/optdigits")
COMMAND = [sys.executable, str(ROOT / "MNIST/optdigits.py"), "--head", "spinal", "--protocol", "corrected", "--quiet"]


# ---- Kills and signals -----------------------------------------------------------------------------------------------------
def kill_test_of(root, *flags):
    """The finished `tools/kill_test.py` of the collection in that folder; forks are faster than fresh interpreters."""
    return subprocess.run([sys.executable, str(root / "tools/kill_test.py"), "--fork", *flags], capture_output=True, text=True)


def test_killed_runs_end_like_undisturbed_ones(tmp_path):
    """A few kills; the committed results/robustness.md is of all of them. Also SIGTERM and Ctrl-C, once each."""
    points = ["half a log line written", "half a checkpoint written", "between the two renamings",
              "log renamed, checkpoint not yet removed"]
    done = kill_test_of(ROOT, "--random", "1", "--families", "Regression", "--points", *points)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "synthetic_regression" in line).split("|")
    assert [cell.strip() for cell in row[2:4]] == ["1", "4"] and row[6].strip() == "0"
    assert all(float(cell.split()[0]) < 2 for cell in row[7:9])  # one second, two for a loaded machine


@pytest.mark.parametrize("good, bad, complaint", [
    ('self.optimizer.load_state_dict(saved["optimizer"])', "pass", "differs: MNIST: run0/"),
    ("self.finished and not self.log.part.exists()", "False", "left over")])
def test_the_kill_test_finds_what_is_wrong(tmp_path, good, bad, complaint):
    """A run that forgets its optimiser when it is resumed, or leaves something behind, is found out."""
    for name in ("tools/kill_test.py", "MNIST/optdigits.py"):
        (tmp_path / name).parent.mkdir()
        text = (ROOT / name).read_text()
        if name.startswith("MNIST"):
            assert text.count(good) == 1
            text = text.replace(good, bad)
        (tmp_path / name).write_text(text)
    point = "log renamed, checkpoint not yet removed" if complaint == "left over" else "checkpoint renamed"
    done = kill_test_of(tmp_path, "--random", "0", "--signals", "0", "--families", "MNIST", "--points", point)
    assert done.returncode == 1 and complaint in done.stderr, done.stderr


# ---- Checkpoints -----------------------------------------------------------------------------------------------------------
def test_the_checkpoint_before_serves_when_the_newest_is_torn(tmp_path):
    checkpoint = optdigits.Checkpoint(tmp_path / "run.pt")
    assert checkpoint.load(torch.device("cpu")) is None
    for epoch in (1, 2, 3):
        checkpoint.saved_at = checkpoint.cost = 0.0  # not too soon after the last
        checkpoint.save({"run": "name", "state": epoch, "weights": torch.ones(1000)})
    assert checkpoint.load(torch.device("cpu"))["state"] == 3
    os.truncate(checkpoint.path, checkpoint.path.stat().st_size // 2)
    assert checkpoint.load(torch.device("cpu"))["state"] == 2
    checkpoint.path.unlink()  # killed between the two renames
    assert checkpoint.load(torch.device("cpu"))["state"] == 2
    checkpoint.previous.write_bytes(b"")
    assert checkpoint.load(torch.device("cpu")) is None
    (tmp_path / "run.tmp").write_bytes(b"half")
    checkpoint.remove()
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_from_the_checkpoint_before(tmp_path, monkeypatch):
    trained, original = [], optdigits.Run.train_epoch

    def spy(self, epoch, *rest):
        if epoch == 5 and 5 not in trained:
            trained.append(5)
            raise KeyboardInterrupt
        trained.append(epoch)
        return original(self, epoch, *rest)

    monkeypatch.setattr(optdigits.Run, "train_epoch", spy)
    monkeypatch.setattr(optdigits.Checkpoint, "cost", property(lambda self: 0.0, lambda self, value: None), raising=False)
    command = ["--epochs", "6", "--head", "spinal", "--quiet", "--results-dir"]
    assert optdigits.main([*command, str(tmp_path / "a")]) == 130
    newest = next(path for path in (tmp_path / "a").rglob("*.pt") if "previous" not in path.name)
    os.truncate(newest, 100)
    assert optdigits.main([*command, str(tmp_path / "a")]) == 0
    assert trained == [1, 2, 3, 4, 5, 4, 5, 6]  # the state after epoch 4 was torn, that after epoch 3 was not
    assert optdigits.main([*command, str(tmp_path / "b")]) == 0
    assert kill_test.logs_of(tmp_path / "a") == kill_test.logs_of(tmp_path / "b")


def test_a_checkpoint_cannot_execute_anything(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    checkpoint, content = optdigits.Checkpoint(tmp_path / "run.pt"), io.BytesIO()
    torch.save({"run": "name", "state": Evil()}, content)
    for path, evil in ((checkpoint.path, content.getvalue()), (checkpoint.previous, pickle.dumps(Evil()))):
        path.write_bytes(evil + hashlib.sha256(evil).digest())  # the checksum is right
    assert checkpoint.load(torch.device("cpu")) is None and not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Evil()))  # it would have
    assert (tmp_path / "executed").exists()


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path, capsys):
    """torch.load alone takes most of them for numbers."""
    checkpoint, unnoticed = optdigits.Checkpoint(tmp_path / "run.pt"), 0
    checkpoint.save({"run": "name", "state": 1, "weights": torch.arange(300.0)})
    content = checkpoint.path.read_bytes()
    for at in range(0, len(content), 13):
        changed = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        checkpoint.path.write_bytes(changed)
        assert checkpoint.load(torch.device("cpu")) is None
        try:
            weights = torch.load(io.BytesIO(changed[:-32]), weights_only=True)["weights"]
            unnoticed += not torch.equal(weights, torch.arange(300.0))
        except Exception:
            pass
    assert unnoticed > 10  # without the checksum these would have been trained on
    assert "run.pt is not used" in capsys.readouterr().err


# ---- Disk ------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount a small tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def train(folder, epochs):
    return optdigits.main([*COMMAND[2:], "--epochs", str(epochs), "--results-dir", str(folder)])


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(small_disk, tmp_path, capsys):
    results, stuffing = small_disk / "results", small_disk / "stuffing"
    assert train(tmp_path / "whole", 5) == 0 and train(results, 2) == 0
    earlier = {path: path.read_bytes() for path in results.rglob("*.jsonl")}
    for room in (100, 1_000, 40_000, 200_000):  # bytes for not even a line, a line, no checkpoint of 70 kB, some checkpoints
        stuffing.unlink(missing_ok=True)
        free = os.statvfs(small_disk)
        stuffing.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - room)))
        capsys.readouterr()
        code, error = train(results, 5), capsys.readouterr().err
        assert code == 2 and error.count("error: ") == error.count("No space left") == 1 and "Traceback" not in error, room
        assert all(path.read_bytes() == content for path, content in earlier.items()) and not list(results.rglob("*.tmp"))
    stuffing.unlink()
    assert train(results, 5) == 0
    logs = kill_test.logs_of(results)
    assert {name: log for name, log in logs.items() if "-e5-" in name} == kill_test.logs_of(tmp_path / "whole")


def test_files_that_may_not_grow_are_one_sentence_and_nothing_is_lost(tmp_path, capsys):
    """The same without the right to mount: a limit on the size of files, first below a log's line, then below a checkpoint."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, name in ((1_000, ".jsonl.part"), (20_000, ".tmp")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            code = train(tmp_path / "a", 3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        error = capsys.readouterr().err
        assert code == 2 and error.count("error: ") == 1 and name in error and "File too large" in error
        assert not list(tmp_path.rglob("*.tmp"))
    assert train(tmp_path / "a", 3) == 0 and train(tmp_path / "b", 3) == 0
    assert kill_test.logs_of(tmp_path / "a") == kill_test.logs_of(tmp_path / "b")


# ---- Twins, divergence -----------------------------------------------------------------------------------------------------
def test_the_second_of_two_runs_says_which_process_has_it(tmp_path):
    first = subprocess.Popen([*COMMAND, "--epochs", "400", "--results-dir", str(tmp_path)], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("logs/*/*.part")):
        assert first.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    command = [*COMMAND, "--epochs", "400", "--results-dir", str(tmp_path)]
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 2 and f"another process ({first.pid} on " in second.stderr and second.stderr.count("\n") == 1
    first.kill()
    first.wait()
    assert list(tmp_path.rglob("*.pid"))
    third = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # the dead one's lock is no obstacle
    (owner,), deadline = tmp_path.rglob("*.pid"), time.monotonic() + 60
    while not owner.read_text().startswith(f"{third.pid} ") and time.monotonic() < deadline:
        assert third.poll() is None
        time.sleep(0.01)
    third.send_signal(signal.SIGTERM)
    assert third.wait(60) == 143


def test_a_log_that_was_finished_while_we_waited_for_its_lock_is_not_cut(tmp_path, monkeypatch):
    """The second process opens the unfinished file, the first one finishes it, the second one gets the lock."""
    fcntl = pytest.importorskip("fcntl")
    first, second, original = *(optdigits.RunLog(tmp_path, "run") for _ in range(2)), fcntl.flock
    first.open({"event": "start"}, 0)

    def late(file, how):
        monkeypatch.setattr(fcntl, "flock", original)
        first.finish({"event": "end"})
        return original(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(optdigits.UserError, match="has just finished"):
        second.open({"event": "start"}, 0)
    assert (tmp_path / "run.jsonl").read_text().count("\n") == 2 and [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]


@pytest.mark.parametrize("script, arguments", [
    ("MNIST/optdigits", ("--epochs", "3")), ("Regression/tabular", ("--demo", "diabetes", "--epochs", "3")),
    ("Regression/synthetic_regression", ("--function", "sum", "--epochs", "3"))])
def test_a_diverging_run_ends_with_a_log_and_make_goes_on(tmp_path, script, arguments):
    """Exit status 0, so that `make` takes the target for made and goes on; the log says what happened."""
    name = Path(script).name
    run = f"{sys.executable} {ROOT / script}.py {' '.join(arguments)} --lr 1e30 --quiet --results-dir {tmp_path}/r"
    (tmp_path / "Makefile").write_text(f"all: first second\nfirst:\n\t{run}\nsecond: first\n\ttouch second\n")
    done = subprocess.run(["make", "-k", "-C", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "second").exists(), done.stderr
    logs = list((tmp_path / "r/logs" / name).glob("*.jsonl"))
    ends = [json.loads(path.read_text().splitlines()[-1]) for path in logs]
    assert len(ends) == 2 and all(end["outcome"] == "diverged" and end["diverged_epoch"] >= 1 for end in ends)
