"""tools/gpu_first_hour.py where a GPU is pretended: order, resumption, time limit, no row of two devices."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

PARTS = ["tests", "bench", "jobs", "cnn", "vgg5", "bf16", "cifar"]
NAME = "NVIDIA Pretend 80GB"
STAND_IN = """
import json, os, sys, time
from pathlib import Path
arguments = sys.argv[1:]
value = lambda flag: arguments[arguments.index(flag) + 1] if flag in arguments else None
name = Path(arguments[0]).stem if arguments[0] != "-m" else "pytest"
with open("calls.txt", "a") as calls:
    calls.write(" ".join([name, *arguments[1:]]) + "\\n")
if "--seed" in arguments:
    head = value("--head") + (f"{value('--layers')}x{value('--width')}" if value("--layers") else "")
    run = "-".join([value("--network"), head, value("--protocol"), *[p for p in [value("--precision")] if p]])
    log = Path(f"results/logs/{name}/{run}-s{value('--seed')}.jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(json.dumps({"provenance": {"device_name": os.environ["NAME"]}}) + "\\n")
elif name in os.environ.get("SLOW", ""):
    time.sleep(60)
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """The Makefile and tools, with a stand-in for python and an nvidia-smi that names one GPU."""
    for name in ("Makefile", "requirements.txt", *(f"tools/{name}.py" for name in ("job", "slot", "gpu_first_hour"))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    index = '[ "$1" = --query-gpu=index ] && echo 0 || '
    scripts = {"nvidia-smi": f'{index}echo "{NAME}"', "python": f'exec {sys.executable} -S {tmp_path}/stand_in.py "$@"'}
    for name, text in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("NAME", NAME)
    monkeypatch.setenv("SLOTS", str(tmp_path / "slots"))
    for name in list(os.environ):
        if name.startswith(("MAKE", "MFLAGS", "GPUS", "JOBS_PER_GPU")):
            monkeypatch.delenv(name)
    return tmp_path


def first_hour(tree, *arguments: str) -> subprocess.CompletedProcess:
    """The tool, which takes the stand-in for its python."""
    program = f"import sys; sys.path.insert(0, 'tools'); sys.executable = '{tree}/bin/python'; import gpu_first_hour; "
    command = [sys.executable, "-c", f"{program}sys.exit(gpu_first_hour.main(sys.argv[1:]))", *arguments]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_parts_are_done_in_their_order_and_only_once(tree):
    done = first_hour(tree, "tests", "bench", "vgg5")
    calls = (tree / "calls.txt").read_text().splitlines()
    assert calls[0] == "pytest pytest -q tests/test_cuda.py" and calls[1] == "bench --only networks --data-dir data"
    runs = [call for call in calls if "--seed" in call]
    assert len(runs) == len(set(runs)) == 40 and all("--network vgg5" in run and "published" in run for run in runs)
    assert done.returncode == 1 and f"GPUs: {NAME}\n" in done.stdout
    assert "vgg5      40 of 40 runs done: results/logs/fashion_mnist, results/logs/mnist" in done.stdout
    assert "cnn       0 of 120 runs done" in done.stdout and "Left: jobs, cnn, bf16, cifar. " in done.stdout
    assert first_hour(tree, "tests", "bench", "vgg5").stdout.endswith("The same command goes on.\n")
    assert (tree / "calls.txt").read_text().splitlines() == calls
    last = first_hour(tree, "--minutes", "1")
    assert last.returncode == 0 and last.stdout.endswith("\nAll done: make tables\n"), last.stdout


def test_a_part_ends_at_its_time_and_is_left(tree, monkeypatch):
    monkeypatch.setenv("SLOW", "bench")
    done = first_hour(tree, "bench", "--minutes", "0.02")
    assert "its 0.02 minutes are over" in done.stdout and "Left: tests, bench, " in done.stdout


def test_no_row_gets_runs_of_two_devices(tree):
    log = tree / "results/logs/mnist/vgg5-fc-published-s3.jsonl"
    log.parent.mkdir(parents=True)
    for device, runs in (("Some CPU", 30), (f"{NAME} MIG 1g", 40)):
        log.write_text(json.dumps({"provenance": {"device_name": device}}) + "\n")
        line = first_hour(tree, "tests").stdout
        assert f"vgg5      {runs - 30 and 1} of {runs} runs done" in line
        assert ("left out: results/logs/mnist/vgg5-fc-published has runs of Some CPU" in line) == (device == "Some CPU")


def test_dry_run_names_everything_and_runs_nothing(tree):
    (tree / "results/tables/bench").mkdir(parents=True)
    record = {
        "device_name": NAME,
        "processes": [{"processes": n, "images_per_second": s} for n, s in ((1, 5), (6, 9), (8, 7))],
    }
    (tree / "results/tables/bench/pretend.json").write_text(json.dumps(record))
    output = first_hour(tree, "--dry-run").stdout
    assert [line.split(":")[0] for line in output.splitlines()[1:8]] == PARTS and not (tree / "calls.txt").exists()
    assert output.count(" -j6 ") == 4 and "JOBS_PER_GPU=6" in output, "as many as the bench found best"


def test_without_a_gpu_or_with_a_wrong_part_it_says_so(tree):
    assert first_hour(tree, "nonsense").returncode == 2
    (tree / "bin/nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    done = first_hour(tree)
    assert done.returncode == 2 and done.stderr == "error: nvidia-smi names no GPU here\n"
