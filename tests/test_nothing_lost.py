"""Runs survive what happens to them: kills at any point, torn checkpoints, full disks, twins. `make kill-test` does more of it."""
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

sys.path.insert(0, str(ROOT / "tools"))
import kill_test  # noqa: E402

optdigits = load_script("MNIST/optdigits")
COMMAND = [sys.executable, str(ROOT / "MNIST/optdigits.py"), "--head", "spinal", "--protocol", "corrected", "--quiet"]


# ---- Kills -----------------------------------------------------------------------------------------------------------------
def test_killed_runs_end_like_undisturbed_ones(tmp_path, capsys):
    """A few kills inside the run, at points drawn from a seed; the committed results/robustness.md is of fifty."""
    assert kill_test.main(["--kills", "6", "--only", "MNIST", "Regression, tables", "--seed", "3", "--output", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert page.count("| equal |") == 2 and "6 kills in" in page


def test_the_kill_test_can_fail(tmp_path, monkeypatch):
    """A script that loses an epoch when it is resumed is found out."""
    script = tmp_path / "MNIST" / "optdigits.py"
    script.parent.mkdir()
    text = (ROOT / "MNIST/optdigits.py").read_text()
    assert text.count('torch.manual_seed(seed_of(self.seed, "dropout", epoch))') == 1
    script.write_text(text.replace('torch.manual_seed(seed_of(self.seed, "dropout", epoch))', "torch.manual_seed(os.getpid())"))
    monkeypatch.setattr(kill_test, "ROOT", tmp_path)
    monkeypatch.setattr(kill_test, "CASES", (("MNIST", "MNIST/optdigits.py", ("--epochs", "3", "--limit", "300"), None),))
    assert kill_test.main(["--kills", "1", "--output", str(tmp_path / "page.md")]) == 1
    assert "DIFFERENT" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("stop, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_is_obeyed_within_a_second_of_the_step(tmp_path, stop, status):
    """Steps take milliseconds here; two seconds are for a loaded machine."""
    process = subprocess.Popen([*COMMAND, "--epochs", "400", "--results-dir", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    while not any(len(path.read_text().splitlines()) > 3 for path in tmp_path.glob("logs/*/*.part")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(stop)
    began = time.monotonic()
    assert process.wait(30) == status and time.monotonic() - began < 2
    assert process.stderr.read().count("\n") == 1


# ---- Checkpoints -----------------------------------------------------------------------------------------------------------
def test_the_checkpoint_before_serves_when_the_newest_is_torn(tmp_path):
    checkpoint = optdigits.Checkpoint(tmp_path / "run.pt")
    assert checkpoint.load(torch.device("cpu")) is None
    for epoch in (1, 2, 3):
        checkpoint.saved_at = checkpoint.cost = 0.0  # not too soon after the last
        checkpoint.save({"epoch": epoch, "weights": torch.ones(1000)})
    assert checkpoint.load(torch.device("cpu"))["epoch"] == 3
    os.truncate(checkpoint.path, checkpoint.path.stat().st_size // 2)
    assert checkpoint.load(torch.device("cpu"))["epoch"] == 2
    checkpoint.path.unlink()  # killed between the two renames
    assert checkpoint.load(torch.device("cpu"))["epoch"] == 2
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
    assert kill_test.without_times(tmp_path / "a") == kill_test.without_times(tmp_path / "b")


def test_a_checkpoint_cannot_execute_anything(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    checkpoint = optdigits.Checkpoint(tmp_path / "run.pt")
    torch.save({"evil": Evil()}, checkpoint.path)
    checkpoint.previous.write_bytes(pickle.dumps(Evil()))
    assert checkpoint.load(torch.device("cpu")) is None and not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Evil()))  # it would have
    assert (tmp_path / "executed").exists()


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


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(small_disk, tmp_path):
    whole = tmp_path / "whole"
    assert subprocess.run([*COMMAND, "--epochs", "5", "--results-dir", str(whole)], capture_output=True).returncode == 0
    results = small_disk / "results"
    assert subprocess.run([*COMMAND, "--epochs", "2", "--results-dir", str(results)], capture_output=True).returncode == 0
    earlier = {path: path.read_bytes() for path in results.rglob("*.jsonl")}
    stuffing = small_disk / "stuffing"
    with stuffing.open("wb") as file:  # all but 40 kB: the log fits, a checkpoint of 0.2 MB does not
        file.write(b"\0" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 40_000))
    full = subprocess.run([*COMMAND, "--epochs", "5", "--results-dir", str(results)], capture_output=True, text=True)
    assert full.returncode == 2 and full.stderr.startswith("error: ") and full.stderr.count("\n") == 1 and "space" in full.stderr
    assert all(path.read_bytes() == content for path, content in earlier.items())
    stuffing.unlink()
    assert subprocess.run([*COMMAND, "--epochs", "5", "--results-dir", str(results)], capture_output=True).returncode == 0
    found = kill_test.without_times(results)
    assert {name: log for name, log in found.items() if "-e5-" in name} == kill_test.without_times(whole)


# ---- Twins, divergence -----------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="which process has a file open is told by Linux alone")
def test_the_second_of_two_runs_says_which_process_has_it(tmp_path):
    first = subprocess.Popen([*COMMAND, "--epochs", "400", "--results-dir", str(tmp_path)], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("logs/*/*.part")):
        assert first.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    command = [*COMMAND, "--epochs", "400", "--results-dir", str(tmp_path)]
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 2 and f"process {first.pid} is writing" in second.stderr and second.stderr.count("\n") == 1
    first.kill()
    first.wait()
    third = subprocess.Popen(command, stderr=subprocess.PIPE)  # the dead one's lock is no obstacle
    time.sleep(6)
    assert third.poll() is None
    third.kill()
    third.communicate()


@pytest.mark.parametrize("script, arguments", [
    ("MNIST/optdigits", ("--epochs", "3")), ("Regression/tabular", ("--demo", "diabetes", "--epochs", "3")),
    ("Regression/synthetic_regression", ("--function", "sum", "--epochs", "3"))])
def test_a_diverging_run_ends_with_a_log_and_make_goes_on(tmp_path, script, arguments):
    """Exit status 0, so that `make` takes the target for made and goes on; the log says what happened."""
    name = Path(script).name
    (tmp_path / "Makefile").write_text(
        f"all: first second\nfirst:\n\t{sys.executable} {ROOT / script}.py {' '.join(arguments)} --lr 1e30 --quiet --results-dir {tmp_path}/r\n"
        "second: first\n\ttouch second\n")
    done = subprocess.run(["make", "-k", "-C", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "second").exists(), done.stderr
    logs = list((tmp_path / "r/logs" / name).glob("*.jsonl"))
    ends = [json.loads(path.read_text().splitlines()[-1]) for path in logs]
    assert len(ends) == 2 and all(end["outcome"] == "diverged" and end["diverged_epoch"] >= 1 for end in ends)
