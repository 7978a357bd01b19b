"""`make slurm`: what is missing becomes tasks of arrays; a task runs its line, or says why not.

There is no Slurm here: sbatch, squeue and scontrol are stand-ins that note how they are called.
"""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from conftest import ROOT
from test_makefile import environment, finish

SEEN = "results/slurm/calls.txt"


@pytest.fixture
def tree(tmp_path):
    """A folder with an awkward name; programs that stand for Slurm's."""
    folder = tmp_path / "a $PATH and 'more"
    for name in [
        "Makefile",
        "results/plan.csv",
        *(f"tools/{x}" for x in ("job.py", "runs.py", "slot.py", "slurm.sh")),
    ]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "bin").mkdir()
    for name, prints in (
        ("sbatch", "Submitted batch job 1"),
        ("squeue", "$QUEUED"),
        ("scontrol", ""),
    ):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {SEEN}\nprintf "%s" "{prints}"\n')
        program.chmod(0o755)
    (folder / "results/slurm").mkdir()
    return folder


def run(tree, *command: str, status: int = 0, **more: str) -> str:
    env = environment(**more)
    env["PATH"] = f"{tree}/bin:{env['PATH']}"
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=tree, env=env, text=True, timeout=60, **merged)
    assert done.returncode == status, done.stdout
    return done.stdout


def task(tree, line: str, number: int = 0, name: str = "one.tasks") -> subprocess.Popen:
    (tree / "one.tasks").write_text(line + "\n")
    env = environment(SLURM_ARRAY_TASK_ID=str(number), SLURM_ARRAY_JOB_ID="7")
    env["PATH"] = f"{tree}/bin:{env['PATH']}"
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(["tools/slurm.sh", name], cwd=tree, env=env, text=True, **merged)


def test_what_is_missing_and_has_its_data_is_submitted(tree):
    (tree / "data").mkdir()
    words = ["slurm", "ROWS=mnist", "RUNS=2", "PYTHON=python", "LAUNCH=true", "AT_ONCE=3"]
    finish(tree, "results/logs/mnist/cnn-fc-published-s0.jsonl")
    run(tree, "make", *words, "SLURM_FLAGS=--gpus=1 --time=1:00:00")
    calls = (tree / SEEN).read_text().splitlines()
    (tasks,) = (tree / "results/slurm").glob("*.tasks")
    name = tasks.relative_to(tree)
    assert calls[0].startswith("squeue ")
    assert calls[1] == f"sbatch --array=0-18%3 --gpus=1 --time=1:00:00 tools/slurm.sh {name}"
    lines = tasks.read_text().splitlines()
    log = "results/logs/mnist/cnn-fc-published-s1.jsonl"
    command = "true MNIST/mnist.py --network cnn --head fc --protocol published --seed 1"
    assert f"python3 tools/job.py {log} -- {command} --data-dir data --quiet" in lines
    said = run(tree, "make", *words, status=2, QUEUED="1_0")
    assert "jobs of an earlier call are in the queue" in said
    failing = ["LAUNCH=false" if word == "LAUNCH=true" else word for word in words]
    said = run(tree, "make", *failing[:1], "ROWS=kmnist", *failing[2:])
    assert "left out: 20 runs whose data are not there" in said and "nothing to submit" in said
    assert len((tree / SEEN).read_text().splitlines()) == len(calls) + 2


def test_a_thousand_tasks_are_an_array_and_without_slurm_it_says_so(tree):
    lines = "".join(f"echo {number}\n" for number in range(2003))
    script = ["sh", "-c", "tools/slurm.sh < lines"]
    (tree / "lines").write_text(lines)
    run(tree, *script)
    arrays = [line for line in (tree / SEEN).read_text().splitlines() if "sbatch" in line]
    assert [line.split()[1] for line in arrays] == ["--array=0-999", "--array=0-999", "--array=0-2"]
    (tree / "bin/sbatch").unlink()
    assert "there is no sbatch here" in run(tree, *script, status=2)


def test_a_task_runs_its_line_and_hands_signals_on(tree):
    log = "results/logs/x/a.jsonl"
    failing = task(tree, f"python3 tools/job.py {log} -- sh -c 'exit 7'")
    assert failing.wait(20) == 7
    assert json.loads((tree / "results/failed/x/a.json").read_text())["status"] == 7
    line = f"""python3 tools/job.py {log} -- sh -c 'echo "$OMP_NUM_THREADS"; exec sleep 60'"""
    wait = task(tree, line)
    assert wait.stdout.readline() == os.environ.get("OMP_NUM_THREADS", "1") + "\n"
    wait.send_signal(signal.SIGUSR1)  # its time is nearly over
    deadline = time.monotonic() + 10
    while not (tree / SEEN).exists() or "scontrol requeue 7_0\n" not in (tree / SEEN).read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    wait.send_signal(signal.SIGTERM)
    assert wait.wait(20) == 143


@pytest.mark.parametrize("number, name", [(0, "gone.tasks"), (1, "one.tasks")])
def test_a_task_without_a_line_fails_and_says_so(tree, number, name):
    process = task(tree, "echo x", number, name)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 2
    assert f"error: {name} has no line for task {number}: submit again" in said
