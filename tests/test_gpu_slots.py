"""tools/slot.py: jobs spread over GPUs, and never more on one than there are places."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from conftest import ROOT

SLOT = [sys.executable, str(ROOT / "tools/slot.py")]
JOB = [
    "bash",
    "-c",
    'echo "start $CUDA_VISIBLE_DEVICES $$" >> "$0"; sleep 0.3; echo "end $CUDA_VISIBLE_DEVICES $$" >> "$0"; exit 7',
]


def environment(tmp_path, **settings):
    return {
        **{k: v for k, v in os.environ.items() if k not in ("GPUS", "JOBS_PER_GPU", "CUDA_VISIBLE_DEVICES")},
        "SLOTS": str(tmp_path / "slots"),
        **settings,
    }


def most_at_once(lines):
    """(most jobs at the same time on each GPU, jobs on each)."""
    now, most, total = Counter(), Counter(), Counter()
    for kind, gpu, _ in map(str.split, lines):
        now[gpu] += 1 if kind == "start" else -1
        most[gpu] = max(most[gpu], now[gpu])
        total[gpu] += kind == "start"
    return most, total


@pytest.mark.parametrize("each", [1, 2])
def test_jobs_spread_and_never_exceed_the_places(tmp_path, each):
    log = tmp_path / "log"
    jobs = [
        subprocess.Popen([*SLOT, *JOB, str(log)], env=environment(tmp_path, GPUS="0,5", JOBS_PER_GPU=str(each)))
        for _ in range(8)
    ]
    assert [job.wait(60) for job in jobs] == [7] * 8  # the job's own status
    most, total = most_at_once(log.read_text().splitlines())
    assert set(total) == {"0", "5"} and sum(total.values()) == 8 and min(total.values()) >= 2
    assert max(most.values()) <= each and (each == 1 or max(most.values()) == 2)


def test_a_killed_job_frees_its_place(tmp_path):
    settings = environment(tmp_path, GPUS="0")
    first = subprocess.Popen([*SLOT, "sleep", "60"], env=settings)
    time.sleep(0.5)
    second = subprocess.Popen(
        [*SLOT, "bash", "-c", "echo $CUDA_VISIBLE_DEVICES"], env=settings, stdout=subprocess.PIPE, text=True
    )
    time.sleep(0.8)
    assert second.poll() is None  # it waits
    first.send_signal(signal.SIGKILL)
    assert second.communicate(timeout=20)[0] == "0\n" and first.wait() == -signal.SIGKILL


def test_signals_reach_the_job(tmp_path):
    job = subprocess.Popen([*SLOT, "sleep", "60"], env=environment(tmp_path, GPUS="0"))
    time.sleep(0.5)
    job.terminate()
    assert job.wait(10) == -signal.SIGTERM


def test_without_gpus_the_command_runs_at_once(tmp_path):
    done = subprocess.run(
        [*SLOT, "bash", "-c", "echo ${CUDA_VISIBLE_DEVICES-unset}"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "unset\n" and not (tmp_path / "slots").exists()


@pytest.mark.parametrize(
    "settings, command",
    [
        ({"JOBS_PER_GPU": "0", "GPUS": "0"}, ["true"]),
        ({"JOBS_PER_GPU": "x", "GPUS": "0"}, ["true"]),
        ({"GPUS": "../0"}, ["true"]),
        ({}, []),
        ({}, ["/no/such/command"]),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, settings, command):
    done = subprocess.run([*SLOT, *command], env=environment(tmp_path, **settings), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_make_spreads_its_jobs(tmp_path):
    """`make -j` with two GPUs named: the slot is taken before each script."""
    done = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "reproduce-regression", "RUNS=20", "GPUS=0 1", "JOBS_PER_GPU=2"],
        capture_output=True,
        text=True,
        check=True,
    )
    commands = [line for line in done.stdout.splitlines() if "synthetic_regression.py" in line]
    assert commands and all("tools/slot.py" in line for line in commands)
    plain = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "reproduce-regression", "RUNS=20", "GPUS="], capture_output=True, text=True
    )
    assert "synthetic_regression.py" in plain.stdout and "tools/slot.py" not in plain.stdout
