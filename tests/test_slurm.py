"""`make slurm`: job arrays of what is missing, on a real Slurm that a test starts (Debian: slurm-wlm)."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from conftest import ROOT

RUN = "optdigits/cnn-spinal6x8-published-e{epochs}-s{seed}.jsonl"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "scancel", "sinfo")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def until(true: callable, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} did not come true in {seconds} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a cluster of one node, this machine, with a munged of its own. Skips where it cannot start."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if lacking := [program for program in PROGRAMS if not shutil.which(program)]:
        pytest.skip(f"no {', '.join(lacking)} (Debian: slurm-wlm munge)")
    if os.getuid() != 0:
        pytest.skip("slurmd starts as root only")
    base = tmp_path_factory.mktemp("slurm")
    for folder in (*base.parents, base):  # munged wants to be reachable by all
        if folder.owner() == "root" and len(folder.parts) > 2:
            folder.chmod(folder.stat().st_mode | 0o055)
    (base / "run").mkdir(mode=0o755)
    for private in ("munge", "state", "spool"):
        (base / private).mkdir(mode=0o700)
    (base / "munge/key").write_bytes(os.urandom(1024))
    (base / "munge/key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    (base / "slurm.conf").write_text(f"""
ClusterName=spinalnet
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={base}/run/munge,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MaxArraySize=15
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
""")
    environment = os.environ | {"SLURM_CONF": str(base / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    munged = [
        "munged",
        "--foreground",
        f"--key-file={base}/munge/key",
        f"--socket={base}/run/munge",
        f"--pid-file={base}/run/pid",
        f"--log-file={base}/munge/log",
        f"--seed-file={base}/munge/seed",
    ]
    started = []
    try:
        for command in (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c"]):
            with open(base / f"{command[0]}.out", "w") as output:
                started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
            if command is munged:
                until((base / "run/munge").exists, 10, "munged's socket")
        end = time.monotonic() + 30
        while (
            subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True).stdout.strip()
            != "idle"
        ):
            if time.monotonic() > end or any(process.poll() is not None for process in started):
                said = " / ".join(
                    (base / f"{name}.out").read_text()[-200:].strip() for name in ("munged", "slurmctld", "slurmd")
                )
                pytest.skip(f"Slurm does not start here: {said}")
            time.sleep(0.2)
        yield environment
    finally:
        subprocess.run(["scancel", "--me"], env=environment, capture_output=True)
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def listed(epochs: list[int]) -> str:
    """`make list` for one run of so many epochs each."""
    return "".join(
        f"digits\tresults/logs/{RUN.format(seed=seed, epochs=number)}\t\t"
        "MNIST/optdigits.py --network cnn --head spinal "
        f"--seed {seed} --epochs {number} --quiet\n"
        for seed, number in enumerate(epochs)
    )


def submit(folder, runs: str, environment, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "tools/slurm.py", "--launch", sys.executable, *arguments],
        input=runs,
        text=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.fixture
def tree(tmp_path):
    """A folder with a blank in its name, which has the scripts and no results."""
    folder = tmp_path / "spinal net"
    folder.mkdir()
    for name in ("MNIST", "tools"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def ask(environment, *command: str) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@pytest.mark.slow
def test_twenty_runs_two_of_them_cancelled_midway_end_complete(tree, slurm):
    """One task is requeued, one told that its time is over, one cancelled and submitted again with what is missing."""
    epochs = [100] * 3 + [3] * 17
    runs, logs = (
        listed(epochs),
        [tree / "results/logs" / RUN.format(seed=seed, epochs=number) for seed, number in enumerate(epochs)],
    )
    output = submit(tree, runs, slurm)
    assert "20 runs: 20 waiting" in output and "-0.sh: 15 tasks" in output and "-1.sh: 5 tasks" in output, (
        "MaxArraySize is 15"
    )
    job = output.split("submitted as ")[1].split()[0]
    assert "left out: 20 runs that are in the queue\nnothing to submit" in submit(tree, runs, slurm)

    def midway(seed: int) -> bool:
        part = logs[seed].with_name(logs[seed].name + ".part")
        return part.exists() and part.read_text().count('"event": "epoch"') >= 2

    stops = {0: ("scontrol", "requeue"), 1: ("scancel", "--batch", "--signal=USR1"), 2: ("scancel",)}
    for seed, stop in stops.items():
        until(lambda seed=seed: midway(seed), 120, f"two epochs of run {seed}")
        stopping = subprocess.Popen([*stop, f"{job}_{seed}"], env=slurm, stderr=subprocess.DEVNULL)
        try:
            assert stopping.wait(5) == 0
        except subprocess.TimeoutExpired:  # Slurm 22.05 delivers USR1, says that it cannot, and tries again for 100 s
            stopping.kill()
            assert seed == 1
    restarts = lambda seed: "Restarts=1" in ask(slurm, "scontrol", "show", "job", f"{job}_{seed}")
    until(lambda: restarts(0) and restarts(1), 30, "the restart of both tasks")
    until(
        lambda: "1 tasks, submitted" in submit(tree, runs, slurm),
        30,
        "the second submission of the cancelled run alone",
    )
    assert "nothing to submit" in submit(tree, runs, slurm)
    until(lambda: not ask(slurm, "squeue", "-h").strip(), 240, "the end of the queue")
    whole = tree / "whole"
    for seed, log in enumerate(logs):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert lines[-1]["event"] == "end" and lines[-1]["outcome"] == "finished"
        assert [line.get("epoch") for line in lines[1:-1]] == list(range(1, epochs[seed] + 1))
        if seed in stops:  # the same as without any stop
            subprocess.run(
                [
                    sys.executable,
                    ROOT / "MNIST/optdigits.py",
                    "--network",
                    "cnn",
                    "--head",
                    "spinal",
                    "--seed",
                    str(seed),
                    "--epochs",
                    str(epochs[seed]),
                    "--quiet",
                    "--results-dir",
                    whole,
                ],
                env=slurm,
                check=True,
                capture_output=True,
            )
            other = (whole / "logs/optdigits" / log.name).read_text().splitlines()
            untimed = lambda line: {
                key: value for key, value in line.items() if key not in ("seconds", "ended")
            }
            assert [untimed(json.loads(line)) for line in other[1:]] == [untimed(line) for line in lines[1:]]
    assert not (tree / "results/failed").exists() and not list((tree / "results").rglob("*.part"))
    assert "20 runs: 20 done\nnothing to submit" in submit(tree, runs, slurm)
    printed = (tree / "results/slurm").glob("*-0-0.txt")
    assert sum(path.read_text().count("-published-e100-s0: ") for path in printed) == 1


def test_only_what_can_run_is_written(tree):
    """--write-only: one array of the missing runs, without those that are done or have no data."""
    runs = listed([3] * 4) + "other\tresults/logs/kmnist/x-s0.jsonl\tdata/.kmnist-ready\tMNIST/kmnist.py --seed 0\n"
    done = tree / "results/logs" / RUN.format(seed=1, epochs=3)
    done.parent.mkdir(parents=True)
    done.write_text("{}\n")
    output = submit(tree, runs, os.environ, "--write-only", "--at-once", "2")
    assert (
        "5 runs: 4 waiting, 1 done\n" in output
        and "1 runs whose data are not there (make data/.kmnist-ready)" in output
    )
    tasks, script = ((next((tree / "results/slurm").glob(f"*.{kind}"))).read_text() for kind in ("tasks", "sh"))
    assert [line.split("--seed ")[1][0] for line in tasks.splitlines()] == [
        "0",
        "2",
        "3",
    ] and "--array=0-2%2\n" in script
    (tree / "data").mkdir()
    (tree / "data/.kmnist-ready").touch()
    assert ": 4 tasks, written" in submit(tree, runs, os.environ, "--write-only")


def test_batch_script_runs_its_task_and_hands_sigterm_on(tree):
    """Without Slurm: the script itself, started with the variables that Slurm sets."""
    runs = (
        "x\tresults/logs/x/a.jsonl\t\t-c 'import sys; sys.exit(7)'\n"
        "x\tresults/logs/x/b.jsonl\t\t-c 'print(1, flush=True); import time; time.sleep(60)'\n"
    )
    submit(tree, runs, os.environ, "--write-only")
    script = next((tree / "results/slurm").glob("*.sh"))
    start = lambda task: subprocess.Popen(
        ["sh", script], env=os.environ | {"SLURM_ARRAY_TASK_ID": str(task)}, stdout=subprocess.PIPE
    )
    assert start(0).wait(60) == 7 and json.loads((tree / "results/failed/x/a.json").read_text())["status"] == 7
    second = start(1)
    assert second.stdout.readline() == b"1\n"
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 143 and not (tree / "results/failed/x/b.json").exists()


def test_without_slurm_it_says_so(tree):
    environment = os.environ | {"PATH": "/nowhere"}
    assert submit(tree, listed([1]), environment, status=2).startswith("error: there is no sbatch here: ")
    assert not (tree / "results").exists()
