"""tools/job.py, slot.py and runs.py: one job for a run, one place on a GPU, and what is left."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import runs
import slot

SLOT = [sys.executable, str(ROOT / "tools/slot.py")]
HOST = os.uname().nodename


# ---- Places on GPUs ------------------------------------------------------------------------------
def environment(tmp_path, **settings: str) -> dict[str, str]:
    ours = ("GPUS", "JOBS_PER_GPU", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"SLOTS": str(tmp_path / "slots")} | settings


def said(tmp_path, *command: str, **settings: str) -> subprocess.CompletedProcess:
    env = environment(tmp_path, **settings)
    return subprocess.run([*SLOT, *command], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("each", [1, 2])
def test_jobs_spread_and_never_exceed_the_places(tmp_path, each):
    job = 'for x in start end; do echo "$x $CUDA_VISIBLE_DEVICES" >> log; sleep 0.2; done; exit 7'
    env = environment(tmp_path, GPUS="0,5", JOBS_PER_GPU=str(each))
    command = [*SLOT, "bash", "-c", job]
    started = [subprocess.Popen(command, env=env, cwd=tmp_path) for _ in range(8)]
    assert [one.wait(60) for one in started] == [7] * 8  # the job's own status
    now, most, total = Counter(), Counter(), Counter()
    for line in (tmp_path / "log").read_text().splitlines():
        kind, gpu = line.split()
        now[gpu] += 1 if kind == "start" else -1
        most[gpu] = max(most[gpu], now[gpu])
        total[gpu] += kind == "start"
    assert set(total) == {"0", "5"} and sum(total.values()) == 8 and min(total.values()) >= 2
    assert max(most.values()) <= each


def test_a_killed_job_frees_its_place_and_signals_reach_the_job(tmp_path):
    env = environment(tmp_path, GPUS="0")
    first = subprocess.Popen([*SLOT, "sleep", "60"], env=env)
    while not list(tmp_path.glob("slots/*")):
        time.sleep(0.05)
    second = subprocess.Popen([*SLOT, "sleep", "60"], env=env)
    time.sleep(0.8)
    third = subprocess.Popen([*SLOT, "echo", "x"], env=env, stdout=subprocess.PIPE, text=True)
    assert first.poll() is None
    first.kill()
    assert first.wait() == -signal.SIGKILL
    time.sleep(1.2)
    second.terminate()
    assert second.wait(10) == -signal.SIGTERM
    assert third.communicate(timeout=20)[0] == "x\n"


FAKE = {  # what nvidia-smi prints, and its exit status: the GPUs
    ("0\n1\n", 0): "0 1",
    ("No devices were found\n", 0): "",
    ("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.\n", 9): "",
    ("0\nUnable to determine the device handle for GPU 0000:3B:00.0: Unknown Error\n", 0): "",
    ("", 0): "",
    ("0\n", 6): "",
}


@pytest.mark.parametrize("fake", FAKE)
def test_an_error_of_nvidia_smi_is_no_list_of_gpus(tmp_path, fake):
    text, status = fake
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\nexit {status}\n")
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert said(tmp_path, "--gpus", PATH=path).stdout == FAKE[fake] + "\n"
    # and make, which asks it, has no GPU either
    text = "print:\n\t@echo [$(GPUS)]"
    (tmp_path / "print.mk").write_text(f"include {ROOT}/Makefile\n{text}\n")
    env = environment(tmp_path, PATH=path)
    command = ["make", "-s", "-C", str(ROOT), "-f", str(tmp_path / "print.mk"), "print"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout == f"[{FAKE[fake]}]\n", done.stderr


@pytest.mark.parametrize(
    "visible, gpus",
    [
        ("3", "3"),
        ("2,0", "2 0"),
        ("GPU-8932f937-d72c,GPU-5", "GPU-8932f937-d72c GPU-5"),
        ("MIG-GPU-8932f937/1/0", "MIG-GPU-8932f937/1/0"),
        ("0,-1,1", "0"),  # as CUDA reads it
        ("", ""),
        ("NoDevFiles", ""),
    ],
)
def test_cuda_visible_devices_is_respected(tmp_path, visible, gpus):
    assert said(tmp_path, "--gpus", CUDA_VISIBLE_DEVICES=visible).stdout == gpus + "\n"
    show = ["bash", "-c", 'echo "$CUDA_VISIBLE_DEVICES ${OMP_NUM_THREADS-unset}"']
    first = gpus.split()[0] if gpus else visible
    threads = "1" if gpus else "unset"
    done = said(tmp_path, *show, CUDA_VISIBLE_DEVICES=visible)
    assert done.stdout == f"{first} {threads}\n"
    done = said(tmp_path, *show, CUDA_VISIBLE_DEVICES=visible, GPUS="7")
    assert done.returncode == 2 and f"CUDA_VISIBLE_DEVICES is {visible!r}" in done.stderr


def test_without_gpus_the_command_runs_at_once_and_mistakes_are_one_sentence(tmp_path):
    show = ["bash", "-c", "echo ${CUDA_VISIBLE_DEVICES-unset} $OMP_NUM_THREADS"]
    assert said(tmp_path, *show, GPUS="", OMP_NUM_THREADS="3").stdout == "unset 3\n"
    assert said(tmp_path, *show, GPUS="4", OMP_NUM_THREADS="3").stdout == "4 3\n"
    wrong = [({"JOBS_PER_GPU": "0"}, ["true"]), ({"JOBS_PER_GPU": "x"}, ["true"])]
    wrong += [({"GPUS": "../0"}, ["true"]), ({}, []), ({}, ["/no/such/command"])]
    for settings, command in wrong:
        done = said(tmp_path, *command, **{"GPUS": "0"} | settings)
        assert done.returncode == 2 and done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


# ---- One job for a run ---------------------------------------------------------------------------
def job(log, *command, **keywords) -> subprocess.Popen:
    start = [sys.executable, ROOT / "tools/job.py", log, "--"]
    return subprocess.Popen([*start, *command], text=True, **keywords)


def state(log) -> str:
    run = runs.Run("x", log)
    runs.look(run)
    return run.state


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_run_and_are_no_failure(tmp_path, number):
    log = tmp_path / "logs/x/a.jsonl"
    wait = job(log, "bash", "-c", "echo up; exec sleep 60", stdout=subprocess.PIPE)
    assert wait.stdout.readline() == "up\n"
    assert log.with_suffix(".running").read_text() == f"process {wait.pid} on {HOST}\n"
    wait.send_signal(number)
    assert wait.wait(20) == 128 + number
    assert not list(log.parent.iterdir()) and not (tmp_path / "failed").exists()


def test_a_second_job_is_refused_while_the_first_or_its_command_lives(tmp_path):
    log = tmp_path / "logs/x/a.jsonl"
    first = job(log, "bash", "-c", "echo $$; exec sleep 60", stdout=subprocess.PIPE)
    command = int(first.stdout.readline())
    for owner in ("job", "command"):
        second = job(log, "touch", tmp_path / "ran", stderr=subprocess.PIPE)
        error = f"error: process {first.pid} on {HOST} runs {log} already\n"
        assert second.communicate(timeout=20)[1] == error, owner
        assert second.returncode == 2 and not (tmp_path / "ran").exists()
        assert not (tmp_path / "failed").exists()
        if owner == "job":
            first.kill()  # the command goes on alone
            first.wait()
    os.kill(command, signal.SIGKILL)
    assert job(log, "touch", tmp_path / "ran").wait(20) == 0 and (tmp_path / "ran").exists()
    assert not list(log.parent.iterdir())


def test_a_stopped_run_is_stopped_at_once_and_running_when_it_goes_on_by_hand(tmp_path):
    """Not only when its last line is old: `make slurm` submits it again without waiting."""
    log = tmp_path / "logs/x/a.jsonl"
    part = log.with_name("a.jsonl.part")
    write = 'touch "$0"; echo up; exec sleep 60'
    wait = job(log, "bash", "-c", write, str(part), stdout=subprocess.PIPE)
    assert wait.stdout.readline() == "up\n" and state(log) == "running"
    wait.terminate()
    assert wait.wait(20) == 143 and state(log) == "stopped"
    later = time.time() + 5
    os.utime(part, (later, later))
    assert state(log) == "running"
    os.utime(part, (later - 700, later - 700))
    os.utime(log.with_suffix(".running"), (later - 800, later - 800))
    assert state(log) == "stopped", "the note is no other machine's"
    log.with_suffix(".running").write_text("process 1 on elsewhere\n")
    assert state(log) == "running"
    for path in (part, log.with_suffix(".running")):
        os.utime(path, (later - 5000, later - 5000))
    assert state(log) == "stopped"
    assert job(log, "mv", part, log).wait(20) == 0
    assert [path.name for path in log.parent.iterdir()] == [log.name]


def test_a_killed_run_says_so_and_a_command_that_is_none_too(tmp_path):
    log = tmp_path / "logs/x/a.jsonl"
    for command, status, reason in (
        (["bash", "-c", "kill -9 $$"], 137, "ended by SIGKILL (too little memory?)"),
        (["/nowhere"], 127, "/nowhere cannot be written or run (No such file or directory)"),
    ):
        assert job(log, *command).wait(20) == status
        record = json.loads((tmp_path / "failed/x/a.json").read_text())
        assert (record["status"], record["reason"]) == (status, reason)
        assert record["command"] == command and state(log) == "failed"


@pytest.mark.parametrize("text", ["", "{}\n", '{"event": "start"}\n{"event": "epo'])
def test_a_damaged_log_is_not_done(tmp_path, text):
    log = tmp_path / "logs/x/a.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(text)
    run = runs.Run("x", log)
    runs.look(run)
    assert run.state == "failed" and "is damaged" in runs.failures([run])


# ---- What is left --------------------------------------------------------------------------------
def started(name="GPU A", device="cuda", epochs=8, **more) -> dict:
    start = {"event": "start", "settings": {"epochs": epochs}, "departures": []}
    start["provenance"] = {"device_name": name, "device": device}
    return start | {"data": {"official": True}} | more


def write_log(folder: Path, name: str, start: dict, *seconds: float) -> Path:
    path = folder / "results/logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [start]
    for epoch, each in enumerate(seconds, start=1):
        lines.append({"event": "epoch", "epoch": epoch, "seconds": each})
    if path.suffix == ".jsonl":
        lines.append({"event": "end"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ask(folder: Path, monkeypatch, capsys, plan: str, *arguments: str) -> str:
    """What tools/runs.py says of MNIST and KMNIST: two seeds, three CNNs and two VGG-5."""
    rows = ["# a remark\n"]
    for name in ("mnist", "kmnist"):
        for network in ("cnn-fc", "cnn-spinal6x8", "cnn-spinal6x10", "vgg5-fc", "vgg5-spinal4x128"):
            for protocol in ("published", "corrected"):
                for seed in range(2):
                    log = f"results/logs/{name}/{network}-{protocol}-s{seed}.jsonl"
                    rows.append(f"{name}\t{log}\t\t{name}.py --seed {seed}\n")
    monkeypatch.chdir(folder)
    Path("plan.csv").write_text("script,network,epochs,pflop\n" + plan)
    monkeypatch.setattr("sys.stdin", rows)
    assert runs.main([*arguments, "--plan", "plan.csv"]) == 0
    return capsys.readouterr().out


def left(text: str) -> dict[str, str]:
    rows = [re.split(r"  +", line.strip()) for line in text.splitlines() if line.strip()]
    return {row[0]: row[-1] for row in rows}


def test_time_left_is_worked_out_by_hand(tmp_path, monkeypatch, capsys):
    """MNIST's CNN: 10 and 12 s an epoch of 8, so 11; 3 heads x 2 protocols x 2 seeds = 12 runs."""
    write_log(tmp_path, "mnist/cnn-fc-published-s0.jsonl", started(), *[10.0] * 8)
    name = "mnist/cnn-fc-published-s1.jsonl"
    older = write_log(tmp_path, name, started("GPU B"), *[99.0] * 8)
    os.utime(older, (1e9, 1e9))  # on a device that is used no more
    write_log(tmp_path, "mnist/cnn-spinal6x8-published-s0.jsonl.part", started(), 12.0, 12.0, 14.0)
    unknown = "mnist,vgg5,150,6\nmnist,cnn,8,0.002\nkmnist,cnn,8,0.004\n"
    text = ask(tmp_path, monkeypatch, capsys, unknown)
    # 12 runs of twice the work of 88 s, 2112 s; the work of KMNIST's VGG-5 is unknown
    assert left(text)["kmnist"] == ">35 min"
    assert "mnist/cnn-spinal6x8-published-s0: epoch 4 of 8, 12 s an epoch, 60 s left\n" in text
    # 9 waiting runs of 88 s, 5 epochs of 12 s: 852 s; 8 runs of VGG-5 of half the work: 352 s
    known = "mnist,cnn,8,0.002\nmnist,vgg5,150,0.001\n"
    assert left(ask(tmp_path, monkeypatch, capsys, known))["mnist"] == "~20 min"
    two = ask(tmp_path, monkeypatch, capsys, known, "--at-once", "2")
    assert left(two)["mnist"] == "~10 min"
    # a short run of VGG-5 tells how long an epoch takes: 8 runs of 150 epochs of 30 s
    short = started(epochs=2, departures=["epochs"])
    write_log(tmp_path, "mnist/vgg5-fc-published-e2-s0.jsonl", short, 30.0, 30.0)
    assert left(ask(tmp_path, monkeypatch, capsys, known))["mnist"] == "10.2 h"


def test_what_takes_more_than_half_a_day_on_a_cpu_needs_a_gpu(tmp_path, monkeypatch, capsys):
    plan = "mnist,vgg5,150,6\nmnist,cnn,8,0.002\nkmnist,vgg5,200,8\n"
    for device, wanted in (("cpu", ("15 min + GPU", "needs a GPU")), ("cuda", ("~22 d", ">30 d"))):
        write_log(tmp_path, "mnist/cnn-fc-published-s0.jsonl", started(device, device), *[10.0] * 8)
        rows = left(ask(tmp_path, monkeypatch, capsys, plan))
        assert (rows["mnist"], rows["kmnist"]) == wanted


def test_a_young_run_knows_its_epochs(tmp_path, monkeypatch, capsys):
    log = tmp_path / "results/logs/mnist/vgg5-fc-published-s0.jsonl"
    wait = job(log, "bash", "-c", "echo up; exec sleep 60", stdout=subprocess.PIPE)
    wait.stdout.readline()
    text = ask(tmp_path, monkeypatch, capsys, "mnist,vgg5,150,6\n")
    wait.terminate()
    wait.wait(20)
    assert "vgg5-fc-published-s0: epoch 1 of 150\n" in text


def test_plan_sums_work_and_hours(tmp_path, monkeypatch, capsys):
    plan = "mnist,cnn,8,4\nmnist,vgg5,150,400\nkmnist,cnn,8,4\n"
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    arguments = ["plan", "--sum", "both=mnist,kmnist"]
    lines = ask(tmp_path, monkeypatch, capsys, plan, *arguments).splitlines()
    # 12 x 4 + 8 x 400 PFLOP at 0.04 a second, and 20 s a run; the work of KMNIST's VGG-5: unknown
    assert lines[1].split() == ["mnist", "20", "3.2480", "22.7", "100", "%", "assumed"]
    assert lines[2].split()[:4] == ["kmnist", "20", "0.0480", "0.4"]
    assert lines[3].split()[:4] == ["both", "40", "3.2960", "23.1"]
    assert "An estimate." in lines[5]
    log = "mnist/cnn-fc-published-s0.jsonl"
    write_log(tmp_path, log, started("A CPU", "cpu"), *[10.0] * 8)
    assert ask(tmp_path, monkeypatch, capsys, plan, *arguments).splitlines()[1] == lines[1]
    write_log(tmp_path, log, started(), *[10.0] * 8)
    measured = ask(tmp_path, monkeypatch, capsys, plan, *arguments)
    # 12 runs of 80 s, and 8 of a hundred times the work
    assert measured.splitlines()[1].split()[3] == "18.0"
    assert "1 % measured, 99 % scaled" in measured and "as fast as on GPU A" in measured


def test_list_is_refused_when_it_is_none(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", ["nonsense\n"])
    assert runs.main([]) == 2
    assert capsys.readouterr().err == "error: not a line of `make list`: 'nonsense'\n"


def test_lock_names_of_places_are_files(monkeypatch):
    monkeypatch.setenv("GPUS", "MIG-GPU-8932f937/1/0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ((name, path),) = slot.places()
    assert name == "MIG-GPU-8932f937/1/0" and path.name == "MIG-GPU-8932f937_1_0.0"
