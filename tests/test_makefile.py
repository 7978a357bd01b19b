"""The Makefile: each row of the tables is one command for one log, finished logs are not made again, help tells the
truth.

No test trains or installs: make only prints what it would do, or runs a stand-in for the scripts.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = ("sum", "sinsum", "product", "sinproduct")
SETS = {
    "mnist": "MNIST",
    "fashion_mnist": "MNIST",
    "kmnist": "MNIST",
    "qmnist": "MNIST",
    "emnist_digits": "EMNIST",
    "emnist_letters": "EMNIST",
    "emnist_balanced": "EMNIST",
}
HEADS = {"cnn": ("fc", "spinal6x8", "spinal6x10"), "vgg5": ("fc", "spinal4x128")}
CIFAR = {
    "cifar10": {
        "vgg11": "4x1024",
        "vgg13": "4x1024",
        "vgg19": "4x512",
        "resnet18": "4x20 4x256",
        "resnet34": "4x256",
        "densenet": "8x16 8x64",
        "lenet": "6x20",
        "cnn": "4x128",
    },
    "cifar100": {
        "vgg11": "4x1024",
        "vgg13": "4x1024",
        "vgg16": "4x512",
        "vgg19": "4x512",
        "resnet18": "4x128 4x512",
        "resnet34": "4x128 4x512",
        "cnn": "4x256",
    },
}
TABLE_II = [(name, folder, HEADS) for name, folder in SETS.items()] + [
    (
        name,
        "CIFAR",
        {network: ("fc", *(f"spinal{size}" for size in sizes.split())) for network, sizes in networks.items()},
    )
    for name, networks in CIFAR.items()
]
TRANSFER = {
    "tl_cifar10": 20,
    "tl_cifar100": 512,
    "tl_caltech101": 101,
    "tl_bird225": 225,
    "tl_stanford_cars": 196,
    "tl_svhn": 20,
    "tl_cinic10": 20,
    "tl_stl10": 20,
    "tl_oxford_flowers102": 101,
    "tl_fruits360": 131,
}
TABLE_III = [
    (name, "Transfer_Learning", {"wide_resnet101_2": ("fc", f"spinal4x{width}"), "vgg19_bn": ("fc", "spinal4x1024")})
    for name, width in TRANSFER.items()
]
TRANSFER_OTHER = [
    ("tl_mnist", "vgg19_bn", "4x1024"),
    ("tl_fashion_mnist", "wide_resnet101_2", "4x1024"),
    ("tl_hymenoptera", "resnet18", "6x5"),
    ("tl_monkey10", "alexnet", "4x20"),
    ("tl_monkey10", "wide_resnet101_2", "4x20"),
    ("tl_intel_image", "wide_resnet101_2", "4x20"),
]
PROTOCOLS = ("published", "corrected")

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def expected_runs(seeds: int) -> dict[str, str]:
    """Command by log, of every row of Tables I, II and III, written down apart from the Makefile's list."""
    runs = {}
    for seed in range(seeds):
        for function in FUNCTIONS:
            for head in ("fc", "spinal"):
                label = "fc" if head == "fc" else "spinal6x50"
                for protocol, noise in (("published", ""), ("corrected", ""), ("published", "broadcast")):
                    log = (
                        f"synthetic_regression/mlp-{label}-{protocol}-{function}{noise and '-broadcast'}-s{seed}.jsonl"
                    )
                    runs[log] = (
                        f"Regression/synthetic_regression.py --function {function}{noise and ' --noise broadcast'} "
                        f"--head {head} --protocol {protocol} --seed {seed} --quiet"
                    )
        for name, folder, heads in TABLE_II + TABLE_III:
            for network, labels in heads.items():
                for label in labels:
                    head = re.sub(r"spinal(\d+)x(\d+)", r"spinal --layers \1 --width \2", label)
                    for protocol in PROTOCOLS:
                        runs[f"{name}/{network}-{label}-{protocol}-s{seed}.jsonl"] = (
                            f"{folder}/{name}.py --network {network} --head {head} --protocol {protocol} --seed {seed} "
                            "--data-dir data --quiet"
                        )
    return {f"results/logs/{log}": command for log, command in runs.items()}


@pytest.fixture
def tree(tmp_path):
    for name in ("Makefile", "requirements.txt", "tools/job.py", "tools/runs.py", "results/reference/tables/plan.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(tree, *arguments: str, status: int = 0) -> str:
    """Output of make, standard error included, without the settings of the make that runs these tests."""
    ours = ("MAKE", "MFLAGS", "RUNS", "DATA", "PYTHON", "LAUNCH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        ["make", *arguments],
        cwd=tree,
        env=environment,
        text=True,
        timeout=60,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def commands(tree, *arguments: str) -> Counter:
    """The training commands that make would run, each with its number of occurrences."""
    return Counter(in_order(tree, *arguments))


def in_order(tree, *arguments: str) -> list[str]:
    """The same in make's order. Each is run by tools/job.py for the log of its own run."""
    lines = make(tree, "-n", "LAUNCH=launch", "PYTHON=python", *arguments).splitlines()
    found = [line.partition(" launch ") for line in lines if " launch " in line and " --seed " in line]
    for job, _, command in found:
        *start, log = job.split()
        assert start == ["python3", "tools/job.py"] and f"/{Path(command.split()[0]).stem}/" in log
        assert log.endswith(f"-s{command.split('--seed ')[1].split()[0]}.jsonl")
    return [command for _, _, command in found]


def finish(tree, *logs: str) -> None:
    for log in logs:
        (tree / log).parent.mkdir(parents=True, exist_ok=True)
        (tree / log).write_text("{}\n")


@pytest.mark.parametrize("seeds", [1, 3])
def test_reproduce_all_prints_each_command_of_the_tables_once(tree, seeds):
    assert commands(tree, "reproduce-all", f"RUNS={seeds}") == Counter(expected_runs(seeds).values())


def test_ten_runs_are_the_default(tree):
    assert sum(commands(tree, "reproduce-all").values()) == 10 * len(expected_runs(1))


def test_no_log_has_two_rules(tree):
    groups = [f"reproduce-{name}" for name in ("all", "arch2", "tl_other", "dropout", "bf16")]
    assert "warning" not in make(tree, "-n", *groups, "LAUNCH=launch", "PYTHON=python")


@pytest.mark.parametrize("log", list(expected_runs(4))[-64::7])
def test_log_is_made_by_its_command(tree, log):
    assert list(commands(tree, log)) == [expected_runs(4)[log]]


def test_only_missing_runs_are_listed_and_half_a_log_is_missing(tree):
    runs = expected_runs(2)
    done, half = list(runs)[::3], list(runs)[1]
    finish(tree, *done, half + ".part")
    expected = Counter(command for log, command in runs.items() if log not in done)
    assert commands(tree, "reproduce-all", "RUNS=2") == expected


def test_finished_collection_needs_neither_environment_nor_data(tree):
    finish(tree, *expected_runs(1))
    assert "Nothing to be done for 'runs-all'" in make(tree, "-n", "reproduce-all", "RUNS=1")


def test_newer_scripts_do_not_void_finished_runs(tree):
    finish(tree, *expected_runs(1))
    (tree / "MNIST").mkdir()
    (tree / "MNIST" / "mnist.py").touch()
    (tree / "requirements.txt").touch()
    assert "Nothing to be done for 'runs-all'" in make(tree, "-n", "reproduce-all", "RUNS=1")


@pytest.mark.parametrize(
    "target, part",
    [
        ("regression", "Regression/"),
        *((name, f"{folder}/{name}.py") for name, folder in SETS.items()),
        ("mnist-family", "MNIST/"),
        ("emnist-family", "EMNIST/"),
        ("cifar-family", "CIFAR/"),
        ("transfer", "Transfer_Learning/"),
        ("tl_stl10", "Transfer_Learning/tl_stl10.py"),
    ],
)
def test_family_targets_run_their_part(tree, target, part):
    expected = Counter(command for command in expected_runs(1).values() if command.startswith(part))
    assert expected and commands(tree, f"reproduce-{target}", "RUNS=1") == expected


def test_arch2_stands_apart_with_two_runs(tree):
    sizes = {"mnist": "26x30", "fashion_mnist": "26x300"}
    sizes |= dict.fromkeys(("kmnist", "qmnist", "emnist_digits"), "26x50")
    runs = {
        f"results/logs/arch2_{name}/arch2-spinal{size}-{protocol}-s{seed}.jsonl": f"{SETS[name]}/arch2_{name}.py "
        f"--network arch2 --head spinal --protocol {protocol} --seed {seed} --data-dir data --quiet"
        for name, size in sizes.items()
        for protocol in PROTOCOLS
        for seed in range(2)
    }
    assert commands(tree, "reproduce-arch2") == Counter(runs.values())
    finish(tree, *runs)
    assert not commands(tree, "reproduce-arch2")


def test_transfer_sets_outside_the_tables_stand_apart_with_two_runs(tree):
    heads = [("fc", "fc"), ("spinal{size}", "spinal --layers {layers} --width {width}")]
    runs = {}
    for name, network, size in TRANSFER_OTHER:
        layers, width = size.split("x")
        for label, head in heads:
            for protocol in PROTOCOLS:
                for seed in range(2):
                    log = f"results/logs/{name}/{network}-{label.format(size=size)}-{protocol}-s{seed}.jsonl"
                    runs[log] = (
                        f"Transfer_Learning/{name}.py --network {network} "
                        f"--head {head.format(layers=layers, width=width)} "
                        f"--protocol {protocol} --seed {seed} --data-dir data --quiet"
                    )
    assert commands(tree, "reproduce-tl_other") == Counter(runs.values())
    finish(tree, *runs)
    assert not commands(tree, "reproduce-tl_other")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_dropout_and_precision_stand_apart(tree, name):
    """Small CNN with the same dropout in both heads, and bf16 beside fp32: one flag and one part of the name each."""
    spinal = [(f"spinal6x{width}", f"spinal --layers 6 --width {width}") for width in (8, 10)]
    vgg = [("fc", "fc"), ("spinal4x128", "spinal --layers 4 --width 128")]
    wanted = {
        "dropout": [("cnn", "fc", "fc", f"drop{p}", f"--fc-dropout {p}") for p in (0.0, 0.25)]
        + [("cnn", *head, f"drop{p}", f"--fc-dropout {p}") for head in spinal for p in (0.25, 0.5)],
        "bf16": [("cnn", *head, "bf16", "--precision bf16") for head in (("fc", "fc"), spinal[0])]
        + [("vgg5", *head, "bf16", "--precision bf16") for head in vgg],
    }
    for group, rows in wanted.items():
        runs = {
            f"results/logs/{name}/{network}-{label}-published-{part}-s{seed}.jsonl": f"MNIST/{name}.py "
            f"--network {network} {flag} --head {head} --protocol published --seed {seed} --data-dir data --quiet"
            for network, label, head, part, flag in rows
            for seed in range(10)
        }
        found = commands(tree, f"reproduce-{group}")
        assert Counter(command for command in found if f"/{name}.py" in command) == Counter(runs.values())
        finish(tree, *runs)
        assert not any(f"/{name}.py" in command for command in commands(tree, f"reproduce-{group}"))


def test_settings_reach_the_commands(tree):
    lines = make(tree, "-n", "reproduce-mnist", "RUNS=1", "LAUNCH=srun python", "DATA=/tmp/sets").splitlines()
    assert "srun python MNIST/mnist.py --fetch-only --data-dir /tmp/sets" in lines
    training = "--network cnn --head fc --protocol published --seed 0 --data-dir /tmp/sets --quiet"
    log = "results/logs/mnist/cnn-fc-published-s0.jsonl"
    assert f"python3 tools/job.py {log} srun python MNIST/mnist.py {training}" in lines
    assert not any(".venv" in line for line in lines), "who brings a launcher brings the environment"


@pytest.mark.parametrize("runs", ["0", "-1", "two", "2.5", ""])
def test_number_of_runs_is_checked(tree, runs):
    assert "RUNS must be a whole number, 1 or more" in make(tree, "-n", "reproduce-all", f"RUNS={runs}", status=2)


# A stand-in for all scripts: notes its command, fails if told so, and writes the log that the schema demands.
STAND_IN = """
import os, sys
arguments = sys.argv[1:]
script = os.path.basename(arguments[0])[:-3]
value = lambda flag: arguments[arguments.index(flag) + 1] if flag in arguments else None
with open("calls.txt", "a") as calls:
    calls.write(" ".join(arguments) + "\\n")
if "--fetch-only" in arguments:
    os.makedirs(value("--data-dir"), exist_ok=True)
    sys.exit()
if value("--seed") == os.environ.get("FAIL_SEED"):
    print("note: first", "error: no luck with this seed", sep="\\n", file=sys.stderr)
    sys.exit(int(os.environ.get("FAIL_STATUS", 2)))
head = value("--head")
if head == "spinal":
    head += f"{value('--layers') or 6}x{value('--width') or 50}"
options = [part for part in (value("--function"), value("--noise")) if part]
name = "-".join([value("--network") or "mlp", head, value("--protocol"), *options, "s" + value("--seed")])
os.makedirs(f"results/logs/{script}", exist_ok=True)
open(f"results/logs/{script}/{name}.jsonl", "w").close()
"""


def stand_in(tree, *arguments: str, status: int = 0) -> list[str]:
    (tree / "stand_in.py").write_text(STAND_IN)
    (tree / "calls.txt").write_text("")
    make(tree, f"LAUNCH={sys.executable} -S stand_in.py", f"PYTHON={sys.executable}", *arguments, status=status)
    return (tree / "calls.txt").read_text().splitlines()


def test_jobs_in_parallel_fetch_the_data_once_and_a_second_call_runs_nothing(tree):
    calls = stand_in(tree, "-j4", "reproduce-mnist", "reproduce-regression", "RUNS=1")
    expected = {
        command for command in expected_runs(1).values() if command.startswith(("Regression/", "MNIST/mnist.py"))
    }
    fetch = "MNIST/mnist.py --fetch-only --data-dir data"
    assert Counter(calls) == Counter([fetch, *expected])
    assert calls.index(fetch) < min(i for i, call in enumerate(calls) if call.startswith("MNIST/mnist.py --network"))
    assert stand_in(tree, "-j4", "reproduce-mnist", "reproduce-regression", "RUNS=1") == []
    assert len(stand_in(tree, "-j4", "reproduce-mnist", "RUNS=2")) == 10, (
        "more runs: only the new seeds, no second fetch"
    )


def test_failed_runs_stop_nothing_are_summed_up_and_are_repeated(tree, monkeypatch):
    monkeypatch.setenv("FAIL_SEED", "1")
    (tree / "stand_in.py").write_text(STAND_IN)
    settings = (f"LAUNCH={sys.executable} -S stand_in.py", f"PYTHON={sys.executable}", "RUNS=3")
    output = make(tree, *settings, "reproduce-mnist", status=2)
    assert len((tree / "calls.txt").read_text().splitlines()) == 1 + 30
    assert "10 runs failed:" in output and "no luck with this seed (10)" in output
    summary = output[output.index("10 runs failed:") :]
    repeat = f"{sys.executable} -S stand_in.py MNIST/mnist.py --network cnn --head fc --protocol published --seed 1 "
    assert sum(repeat in line for line in summary.splitlines()) == 1
    assert make(tree, "failures", "RUNS=3") in output
    rows = {line.split()[0]: line.split()[1:6] for line in make(tree, "status", "RUNS=3").splitlines() if line}
    assert rows["reproduce-mnist"] == ["20", "0", "10", "0", "0"] and rows["10"][0] == "failed:"
    monkeypatch.delenv("FAIL_SEED")
    calls = stand_in(tree, "reproduce-mnist", "RUNS=3")
    assert len(calls) == 10 and all(" --seed 1 " in call for call in calls)
    assert make(tree, "failures", "RUNS=3") == "" and not list((tree / "results/failed").rglob("*.json"))


@pytest.mark.parametrize("status, failed", [("130", 0), ("143", 0), ("1", 10), ("139", 10)])
def test_a_stopped_run_did_not_fail(tree, monkeypatch, status, failed):
    monkeypatch.setenv("FAIL_SEED", "0")
    monkeypatch.setenv("FAIL_STATUS", status)
    stand_in(tree, "reproduce-mnist", "RUNS=1", status=2)
    assert len(list((tree / "results/failed").rglob("*.json"))) == failed


@pytest.mark.parametrize(
    "settings, jobs",
    [(("GPUS=0 1", "JOBS_PER_GPU=3"), "-j6"), (("GPUS=0,5",), "-j2"), (("GPUS=",), None), (("GPUS=0 1", "-j5"), None)],
)
def test_without_j_there_are_as_many_jobs_as_places_on_gpus(tree, settings, jobs):
    (line,) = [
        line
        for line in make(tree, "-n", "reproduce-mnist", "RUNS=1", "LAUNCH=x", *settings).splitlines()
        if "runs-mnist" in line and "status=0" in line
    ]
    assert re.findall(r"-j\d*", line) == ([jobs] if jobs else [])


def job(log, *command, **keywords) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, ROOT / "tools/job.py", log, *command], text=True, **keywords)


def test_signals_reach_the_run_and_are_no_failure(tmp_path):
    log = tmp_path / "logs/x/a.jsonl"
    wait = job(
        log, sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)", stdout=subprocess.PIPE
    )
    assert wait.stdout.readline() == "up\n"
    assert log.with_suffix(".running").read_text() == f"process {wait.pid} on {os.uname().nodename}\n"
    wait.terminate()
    assert wait.wait(20) == 143 and not list(log.parent.iterdir()) and not (tmp_path / "failed").exists()


def test_a_second_job_for_a_run_is_refused_while_the_first_or_its_command_lives(tmp_path):
    log = tmp_path / "logs/x/a.jsonl"
    first = job(log, "bash", "-c", "echo $$; exec sleep 60", stdout=subprocess.PIPE)
    command = int(first.stdout.readline())
    for owner in ("job", "command"):
        second = job(log, "touch", tmp_path / "ran", stderr=subprocess.PIPE)
        assert second.communicate(timeout=20)[1] == (
            f"error: process {first.pid} on {os.uname().nodename} runs {log} already\n"
        ), owner
        assert second.returncode == 2 and not (tmp_path / "ran").exists() and not (tmp_path / "failed").exists()
        if owner == "job":
            first.kill()  # the command goes on alone
            first.wait()
    os.kill(command, signal.SIGKILL)
    assert (
        job(log, "touch", tmp_path / "ran").wait(20) == 0
        and (tmp_path / "ran").exists()
        and not list(log.parent.iterdir())
    )


def test_a_stopped_run_is_stopped_at_once_and_running_when_it_goes_on_by_hand(tmp_path, monkeypatch):
    """Not only when its last line is a minute old: `make slurm` submits it again without waiting."""
    log = tmp_path / "logs/x/a.jsonl"
    part = log.with_name("a.jsonl.part")
    writes = "import sys, time; open(sys.argv[1], 'w').close(); print('up', flush=True); time.sleep(60)"
    wait = job(log, sys.executable, "-c", writes, part, stdout=subprocess.PIPE)
    assert wait.stdout.readline() == "up\n"
    monkeypatch.syspath_prepend(ROOT / "tools")
    import runs

    def state() -> str:
        runs.look(run := runs.Run("x", log, "", ""))
        return run.state

    assert state() == "running"
    wait.terminate()
    assert wait.wait(20) == 143 and state() == "stopped"
    later = time.time() + 5
    os.utime(part, (later, later))
    assert state() == "running"
    os.utime(part, (later - 700, later - 700))
    os.utime(log.with_suffix(".running"), (later - 800, later - 800))
    assert state() == "stopped", "the note is no other machine's"
    assert job(log, "mv", part, log).wait(20) == 0 and [path.name for path in log.parent.iterdir()] == [log.name]


def test_a_killed_run_says_so_and_a_command_that_is_none_too(tmp_path):
    for command, status, reason in (
        (["bash", "-c", "kill -9 $$"], 137, "ended by SIGKILL (too little memory?)"),
        (["/nowhere"], 127, "/nowhere cannot be run (No such file or directory)"),
    ):
        assert (
            subprocess.run([sys.executable, ROOT / "tools/job.py", tmp_path / "logs/x/a.jsonl", *command]).returncode
            == status
        )
        record = json.loads((tmp_path / "failed/x/a.json").read_text())
        assert (record["status"], record["reason"], record["command"]) == (status, reason, command)


def test_longest_runs_start_first(tree):
    order = [re.search(r"(\w+)\.py --network (\w+)", command) for command in in_order(tree, "reproduce-all", "RUNS=2")]
    networks = list(dict.fromkeys(match.groups() for match in order if match))
    plan = [
        tuple(line.split(",")[:2]) for line in (ROOT / "results/reference/tables/plan.csv").read_text().splitlines()[1:]
    ]
    assert networks[: len(plan)] == plan, "rows without a known length come last"
    pflop = [
        float(line.split(",")[3]) for line in (ROOT / "results/reference/tables/plan.csv").read_text().splitlines()[1:]
    ]
    assert pflop == sorted(pflop, reverse=True) and len(pflop) > 40
    (tree / "results/reference/tables/plan.csv").unlink()
    assert commands(tree, "reproduce-all", "RUNS=1") == Counter(expected_runs(1).values())


def started(device="GPU A", epochs=8, **more) -> dict:
    return {
        "event": "start",
        "settings": {"epochs": epochs, "limit": None},
        "departures": [],
        "data": {"official": True},
        "provenance": {"device_name": device},
        **more,
    }


def write_log(tree, name: str, start: dict, *seconds: float) -> Path:
    path = tree / "results/logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [start, *({"event": "epoch", "epoch": k + 1, "seconds": each} for k, each in enumerate(seconds))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def overview(tree, *arguments: str) -> dict[str, list[str]]:
    lines = make(tree, "status", *arguments).splitlines()
    return {line.split()[0]: re.split(r"  +", line.strip())[1:] for line in lines if line.strip()}


def test_status_tells_done_running_stopped_and_waiting_apart(tree):
    """Of unfinished runs, those of jobs here by their lock; the others by the age of what is written."""
    logs = [tree / log for log in expected_runs(2) if "/kmnist/" in log]
    finish(tree, *(str(log.relative_to(tree)) for log in logs[:3]))
    unfinished = dict(zip(("job", "dead job", "by hand", "old", "elsewhere", "long ago elsewhere"), logs[3:]))
    for kind, log in unfinished.items():
        log.with_name(f"{log.name}.part").write_text("")
        if "elsewhere" in kind:
            log.with_suffix(".running").write_text("process 1 on elsewhere\n")
    unfinished["dead job"].with_suffix(".running").write_text(f"process 1 on {os.uname().nodename}\n")
    old = time.time() - 700
    for kind in ("old", "elsewhere", "job"):
        os.utime(unfinished[kind].with_name(f"{unfinished[kind].name}.part"), (old, old))
    for name in (
        f"{unfinished['long ago elsewhere'].name}.part",
        unfinished["long ago elsewhere"].with_suffix(".running").name,
    ):
        os.utime(logs[0].parent / name, (old - 3600, old - 3600))
    sleep = [sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"]
    job = subprocess.Popen([sys.executable, ROOT / "tools/job.py", unfinished["job"], *sleep], stdout=subprocess.PIPE)
    job.stdout.readline()
    try:
        rows = overview(tree, "RUNS=2")
        assert rows["reproduce-kmnist"][:5] == ["3", "3", "0", "3", "11"], "job, by hand, elsewhere are running"
        assert rows["reproduce-regression"][:5] == ["0", "0", "0", "0", "48"]
        running = set(re.findall(r"^  kmnist/(\S+): epoch", make(tree, "status", "RUNS=2"), re.MULTILINE))
        assert running == {unfinished[kind].stem for kind in ("job", "by hand", "elsewhere")}
    finally:
        job.terminate()
        job.wait(20)
    assert overview(tree, "RUNS=2")["reproduce-kmnist"][:5] == ["3", "2", "0", "4", "11"]


def test_status_says_what_needs_a_gpu(tree):
    """On a CPU, runs of more than half a day are named and not added up; on a GPU they are."""
    for device, name in (("cpu", "A CPU"), ("cuda", "A GPU")):
        start = started(name)
        start["provenance"]["device"] = device
        write_log(tree, "mnist/cnn-fc-published-s0.jsonl", start, *[10.0] * 8)
        plan = "script,network,epochs,pflop\nmnist,vgg5,150,6\nmnist,cnn,8,0.002\nkmnist,vgg5,200,8\n"
        (tree / "results/reference/tables/plan.csv").write_text(plan)
        rows = overview(tree, "RUNS=1")
        # 5 runs of 80 s; 4 of 240,000 s
        wanted = {"cpu": ("7 min + GPU", "needs a GPU"), "cuda": ("~11 d", ">15 d")}[device]
        assert (rows["reproduce-mnist"][5], rows["reproduce-kmnist"][5]) == wanted, rows


def test_time_left_is_worked_out_by_hand(tree):
    """MNIST's CNN: 10 and 12 s an epoch of 8, so 11; 3 heads x 2 protocols x 2 seeds = 12 runs."""
    write_log(tree, "mnist/cnn-fc-published-s0.jsonl", started(), *[10.0] * 8)
    older = write_log(tree, "mnist/cnn-fc-published-s1.jsonl", started("GPU B"), *[99.0] * 8)
    os.utime(older, (1e9, 1e9))  # on a device that is used no more
    write_log(tree, "mnist/cnn-spinal6x8-published-s0.jsonl.part", started(), 12.0, 12.0, 14.0)
    (tree / "results/reference/tables/plan.csv").write_text(
        "script,network,epochs,pflop\nmnist,vgg5,150,6\nmnist,cnn,8,0.002\nkmnist,cnn,8,0.004\n"
    )
    rows = overview(tree, "RUNS=2")
    assert rows["reproduce-kmnist"][5] == ">35 min", (
        "12 runs of twice the work of 88 s, 2112 s; VGG-5's work is unknown"
    )
    (tree / "results/reference/tables/plan.csv").write_text(
        "script,network,epochs,pflop\nmnist,cnn,8,0.002\nmnist,vgg5,150,0.001\n"
    )
    # 9 waiting runs of 88 s, 5 epochs of 12 s: 852 s; 8 runs of VGG-5 of half the work: 352 s
    assert overview(tree, "RUNS=2")["reproduce-mnist"][5] == "~20 min"
    assert overview(tree, "RUNS=2", "AT_ONCE=2")["reproduce-mnist"][5] == "~10 min"
    # 6,000 of 60,000 images in 3 s an epoch: 30 s, 150 epochs: 4,500 s x 8 runs + 852 s
    limited = started(
        settings={"epochs": 2, "limit": 6000},
        departures=["epochs", "limit"],
        data={"official": True, "complete_train": 60_000, "train": 5_500, "heldout": 500},
    )
    write_log(tree, "mnist/vgg5-fc-published-e2-limit6000-s0.jsonl", limited, 3.0, 3.0)
    assert overview(tree, "RUNS=2")["reproduce-mnist"][5] == "10.2 h"
    assert "running:\n  mnist/cnn-spinal6x8-published-s0: epoch 4 of 8, 12 s an epoch, 60 s left\n" in make(
        tree, "status", "RUNS=2"
    )


def test_list_is_refused_when_it_is_none():
    done = subprocess.run([sys.executable, ROOT / "tools/runs.py"], input="nonsense\n", capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: not a line of `make list`: 'nonsense'\n"


def test_clean_keeps_logs_and_data_and_names_what_it_removes(tree):
    kept = [
        "results/logs/mnist/a.jsonl",
        "data/MNIST/raw",
        "demo/logs/x/b.jsonl",
        "data/__pycache__/c",
        ".venv/__pycache__/c",
    ]
    kept += ["results/reference/logs/mnist/a.jsonl", "results/weights/mnist/a.pt"]
    unfinished = [
        "results/logs/mnist/d.jsonl.part",
        "results/logs/mnist/d.pt",
        "results/logs/mnist/d.running",
        "results/failed/mnist/d.json",
    ]
    caches = ["tests/__pycache__/e.pyc", ".pytest_cache/f", ".hypothesis/g", ".ruff_cache/h"]
    finish(tree, *kept, *unfinished, *caches)
    output = make(tree, "clean")
    assert not any((tree / name).exists() for name in caches) and "tests/__pycache__" in output
    assert all((tree / name).exists() for name in kept + unfinished)
    output = make(tree, "clean-unfinished")
    assert not any((tree / name).exists() for name in unfinished) and all(name in output for name in unfinished)
    assert all((tree / name).exists() for name in kept)


def public_targets() -> list[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.findall(r"^([a-z0-9_-]+):.*## ", text, re.MULTILINE)


def test_make_alone_prints_one_screen_with_every_public_target(tree):
    output = make(tree)
    assert output == make(tree, "help") and output.count("\n") <= 45
    wanted = {
        "demo",
        "test",
        "test-all",
        "reproduce-all",
        "status",
        "failures",
        "list",
        "slurm",
        "tables",
        "reference-report",
        "rerun",
        "bench",
        "sync",
        "check",
        "clean",
        "gpu-first-hour",
        "kill-test",
    }
    assert wanted <= set(public_targets()) == set(re.findall(r"^  make ([a-z0-9_-]+) ", output, re.MULTILINE))
    assert all(name in output for name in ("RUNS=10", "DATA=data", "LAUNCH=", "JOBS_PER_GPU="))


@pytest.mark.parametrize("target", public_targets())
def test_target_of_help_exists_and_needs_no_environment_when_a_python_is_given(tree, target):
    assert ".venv/bin" not in make(tree, "-n", target, "RUNS=1", "LAUNCH=launch", "PYTHON=python")


def test_every_group_of_rows_is_named_in_help(tree):
    groups = {name.removeprefix("reproduce-") for name in overview(tree, "RUNS=1") if name.startswith("reproduce-")}
    assert len(groups) > 20 and groups <= set(re.findall(r"[a-z0-9_]+", make(tree)))


def test_environment_is_made_where_its_python_is_used(tree):
    for target in ("test", "tables", "demo", "reproduce-regression"):
        lines = make(tree, "-n", target, "RUNS=1").splitlines()
        assert (
            sum("-m venv .venv" in line for line in lines) == sum("-r requirements.txt" in line for line in lines) == 1
        )


def test_tests_are_the_fast_ones_or_all(tree):
    assert 'pytest -q -n 2 --dist loadfile -m "not slow" tests' in make(tree, "-n", "test", "PYTHON=python")
    everything = make(tree, "-n", "test-all", "PYTHON=python")
    assert "SPINALNET_UV=1" in everything and "SPINALNET_FUZZ=10000" in everything and "not slow" not in everything


def test_demo_keeps_to_its_own_folder(tree):
    lines = make(tree, "-n", "demo", "LAUNCH=launch", "PYTHON=python").splitlines()
    assert Counter(line for line in lines if line.startswith(("launch ", "python "))) == Counter(
        [
            "launch Regression/synthetic_regression.py --head both --runs 2 --results-dir demo --quiet",
            "launch MNIST/optdigits.py --network cnn --head both --runs 4 --results-dir demo --quiet",
            "python tools/demo.py",
        ]
    )
