"""Runs survive what happens to them: kills, torn or foreign checkpoints, full disks. `make kill-test` does more."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT, load_script

kill_test = load_script("tools/kill_test")
optdigits = load_script("MNIST/optdigits")
COMMAND = ["--head", "spinal", "--protocol", "corrected", "--quiet", "--device", "cpu"]


def train(folder, epochs: int, *more: str) -> int:
    return optdigits.main([*COMMAND, "--epochs", str(epochs), "--results-dir", str(folder), *more])


def stopped_after(monkeypatch, folder, epochs: int, stop: int) -> Path:
    """A run that Ctrl-C ends when it begins the epoch after `stop`; its checkpoint."""
    original, calls = optdigits.Trainer.epoch, []

    def epoch(self, *rest, **keywords):
        calls.append(1)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return original(self, *rest, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(optdigits.Trainer, "epoch", epoch)
        assert train(folder, epochs) == 130
    (checkpoint,) = folder.glob("logs/optdigits/*.pt")
    return checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The log of five epochs without any stop."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, 5) == 0
    return kill_test.logs_of(folder)


# ---- Kills and signals -----------------------------------------------------------------------------------------------
def kill_test_of(root, *flags) -> subprocess.CompletedProcess:
    """The finished `tools/kill_test.py` of the collection in that folder."""
    return subprocess.run([sys.executable, str(root / "tools/kill_test.py"), *flags], capture_output=True, text=True)


@pytest.mark.slow
def test_killed_runs_end_like_undisturbed_ones():
    """A few kills; results/robustness.md is of all of them. Also SIGTERM and Ctrl-C, once each."""
    points = ["half the log written", "half the checkpoint written", "log renamed, checkpoint not yet removed"]
    done = kill_test_of(ROOT, "--random", "1", "--families", "Regression", "--points", *points)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "synthetic_regression" in line).split("|")
    assert [cell.strip() for cell in row[2:4]] == ["1", "3"] and row[6].strip() == "0"
    assert all(float(cell.split()[0]) < 5 for cell in row[7:9])  # hundredths of a second, but for a loaded machine


@pytest.mark.slow
@pytest.mark.parametrize("family", kill_test.FAMILIES)
def test_every_family_survives_every_point(family):
    done = kill_test_of(ROOT, "--random", "5", "--families", family)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("good", "bad", "complaint"),
    [
        ("optimizer.load_state_dict(", "optimizer.state_dict() and (", "differs: Regression: run0/"),
        ("checkpoint.unlink(missing_ok=True)", "pass", "left over"),
    ],
)
def test_the_kill_test_finds_what_is_wrong(tmp_path, good, bad, complaint):
    """A run that forgets its optimiser when it is resumed, or leaves something behind, is found out."""
    for name in ("tools/kill_test.py", "Regression/synthetic_regression.py"):
        (tmp_path / name).parent.mkdir()
        text = (ROOT / name).read_text(encoding="utf-8")
        if name.startswith("Regression"):
            assert good in text
            text = text.replace(good, bad)
        (tmp_path / name).write_text(text, encoding="utf-8")
    flags = ["--random", "0", "--signals", "0", "--families", "Regression", "--points", "checkpoint renamed"]
    done = kill_test_of(tmp_path, *flags)
    assert done.returncode == 1 and complaint in done.stderr, done.stderr


# ---- Checkpoints -----------------------------------------------------------------------------------------------------
class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("damage", ["none", "torn", "empty", "a pickle that executes", "of other settings"])
def test_a_checkpoint_serves_or_the_run_says_so_and_begins_anew(tmp_path, monkeypatch, capsys, whole, damage):
    checkpoint, marker = stopped_after(monkeypatch, tmp_path / "r", 5, 2), tmp_path / "executed"
    if damage == "torn":
        os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    elif damage == "empty":
        checkpoint.write_bytes(b"")
    elif damage == "a pickle that executes":
        torch.save({"lines": Evil(marker), "state": Evil(marker)}, checkpoint)
    elif damage == "of other settings":
        other = stopped_after(monkeypatch, tmp_path / "other", 6, 2)
        other.rename(checkpoint)
    capsys.readouterr()
    assert train(tmp_path / "r", 5) == 0
    said = capsys.readouterr().err
    assert ("goes on" in said) == (damage == "none") and ("anew" in said) == (damage != "none"), said
    assert kill_test.logs_of(tmp_path / "r") == whole and not marker.exists()
    assert not [path for path in (tmp_path / "r").rglob("*") if path.suffix in (".pt", ".part", ".tmp")]
    pickle.loads(pickle.dumps(Evil(marker)))  # it would have
    assert marker.exists()


def test_a_finished_log_of_another_text_of_the_script_is_not_shown_as_this_ones(tmp_path, capsys):
    assert train(tmp_path, 1) == 0
    (log,) = tmp_path.rglob("*.jsonl")
    assert train(tmp_path, 1) == 0 and "already finished" in "".join(capsys.readouterr())
    start, *rest = log.read_text().splitlines(keepends=True)
    changed = json.loads(start)
    changed["provenance"]["script_sha256"] = "0" * 16
    log.write_text(json.dumps(changed) + "\n" + "".join(rest))
    assert train(tmp_path, 1) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert train(tmp_path, 1, "--overwrite") == 0
    assert json.loads(log.read_text().splitlines()[0])["provenance"]["script_sha256"] != "0" * 16


# ---- Disk ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [1_000, 20_000])  # bytes of a file: less than a log, less than a checkpoint
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(tmp_path, capsys, whole, limit):
    """Files that may not grow stand in for it; earlier logs stay, and the same command goes on when there is space."""
    resource = pytest.importorskip("resource")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    assert train(tmp_path, 2) == 0
    earlier = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        code = train(tmp_path, 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert code == 2 and error.count("error: ") == 1 and "Traceback" not in error
    assert all(path.read_bytes() == content for path, content in earlier.items())
    assert train(tmp_path, 5) == 0
    assert {name: log for name, log in kill_test.logs_of(tmp_path).items() if "-e5-" in name} == whole


# ---- Divergence ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("MNIST/optdigits", ("--epochs", "3")),
        ("Regression/tabular", ("--demo", "diabetes", "--epochs", "3")),
        ("Regression/synthetic_regression", ("--function", "sum", "--epochs", "3")),
    ],
)
def test_a_diverging_run_ends_with_a_log_that_says_so(tmp_path, script, arguments):
    """Exit status 0, so that `make` takes the target for made and goes on."""
    command = [sys.executable, ROOT / f"{script}.py", *arguments, "--lr", "1e5", "--quiet", "--results-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = [
        json.loads(path.read_text().splitlines()[-1]) for path in tmp_path.glob(f"logs/{Path(script).name}/*.jsonl")
    ]
    assert len(ends) == 2 and any(end["outcome"] == "diverged" for end in ends)
