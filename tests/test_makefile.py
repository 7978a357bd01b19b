"""The Makefile: each row is one command for one log, finished logs stay, help tells the truth.

No test trains or installs: make only prints what it would do, or runs a stand-in for the scripts.
"""

import itertools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from conftest import ROOT

FUNCTIONS = ["sum", "sinsum", "product", "sinproduct"]
FOLDERS = {"mnist": "MNIST", "fashion_mnist": "MNIST", "kmnist": "MNIST", "qmnist": "MNIST"}
FOLDERS |= dict.fromkeys(["emnist_digits", "emnist_letters", "emnist_balanced"], "EMNIST")
GREY = {"cnn": "6x8 6x10", "vgg5": "4x128"}
CIFAR10 = {"vgg11": "4x1024", "vgg13": "4x1024", "vgg19": "4x512", "resnet18": "4x20 4x256"}
CIFAR10 |= {"resnet34": "4x256", "densenet": "8x16 8x64", "lenet": "6x20", "cnn": "4x128"}
CIFAR100 = {"vgg11": "4x1024", "vgg13": "4x1024", "vgg16": "4x512", "vgg19": "4x512"}
CIFAR100 |= {"resnet18": "4x128 4x512", "resnet34": "4x128 4x512", "cnn": "4x256"}
TRANSFER = dict.fromkeys(["tl_cifar10", "tl_svhn", "tl_cinic10", "tl_stl10"], 20)
TRANSFER |= dict.fromkeys(["tl_caltech101", "tl_oxford_flowers102"], 101)
TRANSFER |= {"tl_cifar100": 512, "tl_bird225": 225, "tl_stanford_cars": 196, "tl_fruits360": 131}
OTHER = [
    ("tl_mnist", "vgg19_bn", "4x1024"),
    ("tl_fashion_mnist", "wide_resnet101_2", "4x1024"),
    ("tl_hymenoptera", "resnet18", "6x5"),
    ("tl_monkey10", "alexnet", "4x20"),
    ("tl_monkey10", "wide_resnet101_2", "4x20"),
    ("tl_intel_image", "wide_resnet101_2", "4x20"),
]
ARCH2 = {"MNIST/arch2_mnist": "26x30", "MNIST/arch2_fashion_mnist": "26x300"}
ARCH2 |= dict.fromkeys(["MNIST/arch2_kmnist", "MNIST/arch2_qmnist"], "26x50")
ARCH2 |= {"EMNIST/arch2_emnist_digits": "26x50"}
DROPOUT = {  # heads, protocol: levels that differ from the row's
    ("fc", "published"): ["0.0", "0.25"],
    ("6x8 6x10", "published"): ["0.25", "0.5"],
    ("fc 6x8 6x10", "corrected"): ["0.5"],
}
BOTH = ["published", "corrected"]

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


class Rows:
    """Log and command of each run of a group, written down apart from the Makefile's list."""

    def __init__(self):
        self.groups: dict[str, dict[str, str]] = {}

    def add(self, group, place, network, size, protocol, seeds, option="", flag=""):
        """size: fc, or layers x width of the Spinal head"""
        name = place.split("/")[1]
        head = "fc" if size == "fc" else f"spinal{size}"
        flags = "--head fc"
        if size != "fc":
            flags = "--head spinal"
            if network not in ("mlp", "arch2"):
                flags += " --layers {} --width {}".format(*size.split("x"))
        shown = "" if network == "mlp" else f"--network {network} "
        data = "" if network == "mlp" else " --data-dir data"
        for seed in range(seeds):
            log = f"results/logs/{name}/{network}-{head}-{protocol}{option}-s{seed}.jsonl"
            command = f"{place}.py {shown}{flag}{flags} --protocol {protocol} --seed {seed}"
            self.groups.setdefault(group, {})[log] = f"{command}{data} --quiet"

    def all(self) -> dict[str, str]:
        """Those of Tables I, II and III."""
        apart = ("arch2", "tl_other", "dropout", "bf16")
        found = {}
        for group, runs in self.groups.items():
            if group not in apart:
                found |= runs
        return found


def add_regression(rows: Rows, seeds: int) -> None:
    for size in ("fc", "6x50"):
        row = ("regression", "Regression/synthetic_regression", "mlp", size)
        for function in FUNCTIONS:
            flag = f"--function {function} "
            for protocol in BOTH:
                rows.add(*row, protocol, seeds, f"-{function}", flag)
            flag += "--noise broadcast "
            rows.add(*row, "published", seeds, f"-{function}-broadcast", flag)


def add_tables(rows: Rows, seeds: int) -> None:
    """Tables II and III, and the transfer sets of no table."""
    sets = [(name, f"{folder}/{name}", GREY, seeds) for name, folder in FOLDERS.items()]
    sets.append(("cifar10", "CIFAR/cifar10", CIFAR10, seeds))
    sets.append(("cifar100", "CIFAR/cifar100", CIFAR100, seeds))
    for name, width in TRANSFER.items():
        networks = {"wide_resnet101_2": f"4x{width}", "vgg19_bn": "4x1024"}
        sets.append((name, f"Transfer_Learning/{name}", networks, seeds))
    for name, network, size in OTHER:
        sets.append(("tl_other", f"Transfer_Learning/{name}", {network: size}, min(seeds, 2)))
    for group, place, networks, count in sets:
        for network, sizes in networks.items():
            for size in ["fc", *sizes.split()]:
                # The published vgg19_bn of Table III is the same network with both heads.
                once = group in TRANSFER and network == "vgg19_bn" and size != "fc"
                for protocol in BOTH[once:]:
                    rows.add(group, place, network, size, protocol, count)


def expected(seeds: int) -> Rows:
    rows = Rows()
    add_regression(rows, seeds)
    add_tables(rows, seeds)
    for place, size in ARCH2.items():
        for protocol in BOTH:
            rows.add("arch2", place, "arch2", size, protocol, min(seeds, 2))
    for place in ("MNIST/mnist", "MNIST/fashion_mnist"):
        for (sizes, protocol), levels in DROPOUT.items():
            for size, p in itertools.product(sizes.split(), levels):
                row = ("dropout", place, "cnn", size, protocol, seeds)
                rows.add(*row, f"-drop{p}", f"--fc-dropout {p} ")
        for network, size in (("cnn", "fc"), ("cnn", "6x8"), ("vgg5", "fc"), ("vgg5", "4x128")):
            row = ("bf16", place, network, size, "published", seeds)
            rows.add(*row, "-bf16", "--precision bf16 ")
    return rows


@pytest.fixture
def tree(tmp_path):
    names = ["job.py", "runs.py", "slot.py", "slurm.sh"]
    for name in [
        "Makefile",
        "requirements.txt",
        "results/plan.csv",
        *(f"tools/{x}" for x in names),
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    """Without the settings of the make that runs these tests, and without GPUs."""
    ours = ("MAKE", "MFLAGS", "RUNS", "DATA", "PYTHON", "LAUNCH", "GPUS", "CUDA_VISIBLE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"CUDA_VISIBLE_DEVICES": ""} | more


def make(tree, *arguments: str, status: int = 0, **more: str) -> str:
    """Output of make, standard error included."""
    done = subprocess.run(
        ["make", *arguments],
        cwd=tree,
        env=environment(**more),
        text=True,
        timeout=300,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def jobs(tree, *arguments: str, **more: str) -> list[tuple[list[str], str]]:
    """Logs and training command of each job that make would run, in its order."""
    lines = make(tree, "-n", "LAUNCH=launch", "PYTHON=python", *arguments, **more)
    found = []
    for line in lines.replace("\\\n", "").splitlines():
        logs, _, command = line.partition(" -- launch ")
        if " --seed " in command:
            assert logs.startswith("python3 tools/job.py ")
            found.append((logs.split()[2:], command.strip()))
    return found


def commands(tree, *arguments: str) -> dict[str, str]:
    """Command of each log; that of ten seeds is taken apart."""
    found = {}
    for logs, command in jobs(tree, *arguments):
        first = int(command.split("--seed ")[1].split()[0])
        assert len(logs) == int(re.findall(r"--runs (\d+)", command + " --runs 1")[0])
        for seed, log in enumerate(logs, start=first):
            one = re.sub(r"--seed \d+( --runs \d+)?", f"--seed {seed}", command)
            assert log not in found and log.endswith(f"-s{seed}.jsonl")
            found[log] = one
    return found


def finish(tree, *logs: str) -> None:
    for log in logs:
        (tree / log).parent.mkdir(parents=True, exist_ok=True)
        (tree / log).write_text('{"event": "end"}\n')


# ---- Rows ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("seeds", [1, 3])
def test_every_row_is_made_by_its_command_once(tree, seeds):
    rows = expected(seeds)
    apart = ["arch2", "tl_other", "dropout", "bf16"]
    wanted = rows.all()
    assert commands(tree, "reproduce-all", f"RUNS={seeds}") == wanted
    for group in apart:
        wanted |= rows.groups[group]
    goals = [f"reproduce-{group}" for group in ["all", *apart]]
    assert commands(tree, *goals, f"RUNS={seeds}") == wanted
    listed = {}
    for line in make(tree, "list", f"RUNS={seeds}").splitlines():
        if not line.startswith("#"):
            group, log, ready, listed[log] = line.split("\t")
            assert log in rows.groups[group]
            name = log.split("/")[2]
            assert ready == ("" if group == "regression" else f"results/data/{name}/data.ready")
    assert listed == wanted


def test_families_default_number_of_runs_and_single_logs(tree):
    rows = expected(10)
    assert len(commands(tree, "reproduce-all")) == len(rows.all()) > 2000
    parts = {"mnist-family": "/MNIST/", "emnist-family": "/EMNIST/", "cifar-family": "/CIFAR/"}
    parts |= {"transfer": "/Transfer_Learning/", "tl_stl10": "/Transfer_Learning/tl_stl10.py"}
    for part, place in (parts | {"regression": "/Regression/", "mnist": "/MNIST/mnist.py"}).items():
        wanted = {log: x for log, x in rows.all().items() if f"/{x}".startswith(place)}
        assert commands(tree, f"reproduce-{part}") == wanted
    for log in list(rows.all())[::511]:
        found = commands(tree, log)
        assert found[log] == rows.all()[log] and len(found) == (10 if "regression" in log else 1)


def test_regression_takes_ten_seeds_a_process_and_only_missing_runs_count(tree):
    rows = expected(23)
    found = jobs(tree, "reproduce-regression", "RUNS=23")
    sizes = Counter(len(logs) for logs, _ in found)
    assert sizes == {10: 48, 3: 24}
    done = list(rows.all())[::3]
    finish(tree, *done, list(rows.all())[1] + ".part")
    wanted = {log for log in rows.all() if log not in done}
    assert wanted <= set(commands(tree, "reproduce-all", "RUNS=23"))
    finish(tree, *rows.all())
    (tree / "MNIST").mkdir()
    for name in ("MNIST/mnist.py", "requirements.txt"):  # an edit voids no finished run
        (tree / name).touch()
    assert "Nothing to be done for 'runs-all'" in make(tree, "-n", "reproduce-all", "RUNS=23")


def test_one_network_of_a_part(tree):
    found = commands(tree, "reproduce-mnist", "NETWORK=cnn", "RUNS=2")
    rows = expected(2).groups["mnist"]
    assert found == {log: command for log, command in rows.items() if "/cnn-" in log}
    said = make(tree, "reproduce-cifar10", "NETWORK=vgg16", status=2)
    assert "cifar10 has no row with NETWORK=vgg16" in said
    assert "NETWORK must be one of" in make(tree, "list", "NETWORK=vgg6", status=2)


@pytest.mark.parametrize("gpus", ["", "0"])
def test_longest_first_with_gpus_and_shortest_first_without(tree, gpus):
    lines = (ROOT / "results/plan.csv").read_text().splitlines()[1:]
    plan = [tuple(line.split(",")[:2]) for line in lines]
    work = [float(line.split(",")[3]) for line in lines]
    assert work == sorted(work, reverse=True)
    found = jobs(tree, "reproduce-all", "RUNS=1", f"GPUS={gpus}")
    order = [(logs[0].split("/")[2], logs[0].split("/")[3].split("-")[0]) for logs, _ in found]
    order = list(dict.fromkeys(order))
    assert set(order) <= set(plan), "make knows how long each takes: make costs"
    assert order == [x for x in (plan if gpus else plan[::-1]) if x in order]


@pytest.mark.parametrize("runs", ["0", "-1", "two", "2.5", ""])
def test_settings_are_checked_in_one_sentence(tree, runs):
    said = make(tree, "-n", "reproduce-all", f"RUNS={runs}", status=2)
    assert "RUNS must be a whole number, 1 or more" in said
    said = make(tree, "-n", "reproduce-all", "DATA=my data", status=2)
    assert said.count("\n") == 1 and "without blanks in its name, not 'my data'" in said


def test_many_runs_are_no_burden(tree):
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert make(tree, "list", "RUNS=400").count("\n") > 100_000
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 5
    assert make(tree, "list", "RUNS=1000", "ROWS=mnist").count("\n") == 10_000
    assert make(tree, "help", "RUNS=1000").count("\n") < 60


# ---- Jobs ----------------------------------------------------------------------------------------
# A stand-in for all scripts: notes its command, fails if told so, and writes the logs.
STAND_IN = """
import os, sys, time
words = sys.argv[1:]
script = os.path.basename(words[0])[:-3]
def value(flag):
    return words[words.index(flag) + 1] if flag in words else None
def note(text):
    with open("calls.txt", "a") as calls:
        calls.write(text + "\\n")
note(" ".join(words))
if "--fetch-only" in words:
    time.sleep(0.2)
    note("fetched " + script)
    if script == os.environ.get("NO_DATA"):
        sys.exit("error: the network is down")
    sys.exit()
head = value("--head")
if head == "spinal":
    head += f"{value('--layers') or 6}x{value('--width') or 50}"
options = [part for part in (value("--function"), value("--noise")) if part]
os.makedirs(f"results/logs/{script}", exist_ok=True)
for seed in range(int(value("--seed")), int(value("--seed")) + int(value("--runs") or 1)):
    if str(seed) == os.environ.get("FAIL_SEED"):
        print("note: first", "error: no luck with this seed", sep="\\n", file=sys.stderr)
        sys.exit(int(os.environ.get("FAIL_STATUS", 2)))
    parts = [value("--network") or "mlp", head, value("--protocol"), *options, f"s{seed}"]
    path = f"results/logs/{script}/{'-'.join(parts)}.jsonl"
    if not os.path.exists(path):
        with open(path, "w") as log:
            log.write('{"event": "end"}\\n')
if os.environ.get("WAIT"):
    note("waiting")
    time.sleep(30)
"""


def settings(tree) -> list[str]:
    (tree / "stand_in.py").write_text(STAND_IN)
    return [f"LAUNCH={sys.executable} -S stand_in.py", f"PYTHON={sys.executable}"]


def stand_in(tree, *arguments: str, status: int = 0, **more: str) -> list[str]:
    """Lines that the stand-in wrote."""
    (tree / "calls.txt").write_text("")
    make(tree, *settings(tree), *arguments, status=status, **more)
    return (tree / "calls.txt").read_text().splitlines()


def test_data_are_fetched_once_and_what_is_there_is_not_made_again(tree):
    goals = ["-j4", "reproduce-mnist", "NETWORK=vgg5"]
    (tree / "data").mkdir(mode=0o500)  # read-only: mounted sets
    fetch = ["MNIST/mnist.py --fetch-only --data-dir data", "fetched mnist"]
    wanted = [x for log, x in expected(3).groups["mnist"].items() if "vgg5" in log]
    calls = stand_in(tree, *goals, "RUNS=3")
    assert calls[:2] == fetch and sorted(calls[2:]) == sorted(wanted)
    assert stand_in(tree, *goals, "RUNS=3") == []
    assert len(stand_in(tree, *goals, "RUNS=4")) == 4 and not list((tree / "data").iterdir())
    elsewhere = stand_in(tree, *goals, "RUNS=5", "DATA=/tmp/no")[0]
    assert elsewhere == "MNIST/mnist.py --fetch-only --data-dir /tmp/no"


def test_ten_seeds_are_made_by_one_process(tree):
    goal = "results/logs/synthetic_regression/mlp-fc-published-sum"
    assert len(stand_in(tree, "-j4", goal, "RUNS=13")) == 2
    logs = set((tree / goal).parent.iterdir())
    assert logs == {tree / f"{goal}-s{seed}.jsonl" for seed in range(13)}
    assert stand_in(tree, "-j4", goal, "RUNS=13") == []
    (tree / f"{goal}-s7.jsonl").unlink()
    (call,) = stand_in(tree, "-j4", goal, "RUNS=13")
    assert "--seed 0 --runs 10" in call and (tree / f"{goal}-s7.jsonl").exists()


def test_scripts_with_one_archive_fetch_one_after_the_other(tree):
    names = ["emnist_digits", "emnist_letters", "emnist_balanced", "arch2_emnist_digits"]
    stamps = [f"results/data/{name}/data.ready" for name in names]
    calls = stand_in(tree, "-j4", *stamps[::-1])
    expected_calls = []
    for name in names:
        expected_calls += [f"EMNIST/{name}.py --fetch-only --data-dir data", f"fetched {name}"]
    assert calls == expected_calls
    pairs = [
        ("mnist", "tl_mnist"),
        ("fashion_mnist", "tl_fashion_mnist"),
        ("qmnist", "arch2_qmnist"),
    ]
    for first, second in [*pairs, ("kmnist", "arch2_kmnist"), ("cifar10", "tl_cifar10")]:
        calls = stand_in(tree, "-j4", f"results/data/{second}/data.ready")
        fetched = [line.removeprefix("fetched ") for line in calls if line.startswith("fetched")]
        assert fetched[0] == first and fetched[-1] == second


def test_failed_runs_stop_nothing_are_summed_up_and_are_repeated(tree):
    (tree / "data").mkdir()
    sums = ["results/logs/synthetic_regression/mlp-fc-published-sum", "RUNS=3", "NETWORK="]
    vgg5 = ["reproduce-mnist", "RUNS=3", "NETWORK=vgg5"]
    output = make(tree, *settings(tree), *vgg5, status=2, FAIL_SEED="1")
    assert "4 runs failed:" in output and "no luck with this seed (4)" in output
    make(tree, *settings(tree), "-k", *sums, status=2, FAIL_SEED="1")
    rows = table(make(tree, "status", "RUNS=3"))
    assert rows["mnist"] == ["8", "0", "4", "0", "0", "18"]
    assert rows["regression"] == ["1", "0", "2", "0", "0", "69"]
    failures = make(tree, "failures", *vgg5[1:], "ROWS=mnist")
    assert failures in output and failures.count("stand_in.py MNIST/mnist.py --network vgg5") == 4
    assert len(stand_in(tree, *vgg5)) == 4 and len(stand_in(tree, *sums)) == 1
    assert make(tree, "failures", "RUNS=3") == "" and not list(tree.glob("results/failed/*/*"))


def test_failed_fetches_are_shown_with_the_runs_that_wait_for_them(tree):
    (tree / "data").mkdir()
    vgg5 = ["RUNS=1", "NETWORK=vgg5"]
    both = [*settings(tree), "reproduce-mnist-family", *vgg5]
    output = make(tree, *both, status=2, NO_DATA="kmnist")
    assert "4 runs have no data:" in output and "the network is down (4)" in output
    assert "MNIST/kmnist.py --fetch-only --data-dir data" in output
    text = make(tree, "status", *vgg5)
    assert table(text)["kmnist"] == ["0", "0", "0", "0", "4", "0"]
    assert table(text)["mnist"] == ["4", "0", "0", "0", "0", "0"]
    assert "0 failed, 4 have no data: make failures" in text
    stand_in(tree, "reproduce-kmnist", *vgg5)
    assert make(tree, "failures", *vgg5) == ""


@pytest.mark.parametrize("status, failed", [("130", 0), ("129", 0), ("143", 0), ("1", 4)])
def test_a_stopped_run_did_not_fail(tree, status, failed):
    goal = ["reproduce-mnist", "RUNS=1", "NETWORK=vgg5"]
    stand_in(tree, *goal, status=2, FAIL_SEED="0", FAIL_STATUS=status)
    assert len(list((tree / "results/failed").rglob("*.json"))) == failed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "name", ["mnist/cnn-fc-published-s0", "synthetic_regression/mlp-fc-published-sum-s0"]
)
def test_make_deletes_no_finished_log(tree, number, name):
    """Stopped between the log's new name and the end of the recipe."""
    command = ["make", *settings(tree), f"results/logs/{name}.jsonl"]
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment(WAIT="1"),
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while "waiting" not in (
        (tree / "calls.txt").read_text() if (tree / "calls.txt").exists() else ""
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, number)
    assert process.wait(30) != 0
    assert (tree / f"results/logs/{name}.jsonl").exists()


@pytest.mark.parametrize(
    "words, jobs_",
    [
        (("GPUS=0 1", "JOBS_PER_GPU=3"), ["-j6"]),
        (("GPUS=0,5",), ["-j2"]),
        (("GPUS=",), []),
        (("GPUS=0 1", "-j5"), []),
    ],
)
def test_without_j_there_are_as_many_jobs_as_places_on_gpus(tree, words, jobs_):
    said = make(tree, "-n", "reproduce-mnist", "RUNS=1", "LAUNCH=x", *words).splitlines()
    (line,) = [line for line in said if "runs-mnist" in line and "status=0" in line]
    assert re.findall(r"-j\d+", line) == jobs_


# ---- Other targets -------------------------------------------------------------------------------
def table(text: str) -> dict[str, list[str]]:
    """The counts of each line of `make status`."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) > 6 and words[1].isdigit():
            found[words[0]] = words[1:7]
    return found


def test_clean_keeps_logs_and_data_and_names_what_it_removes(tree):
    kept = ["results/logs/mnist/a.jsonl", "data/MNIST/raw", "demo/logs/x/b.jsonl"]
    kept += ["data/__pycache__/c", ".venv/__pycache__/c", "results/weights/mnist/a.pt"]
    unfinished = [f"results/logs/mnist/d.{x}" for x in ("jsonl.part", "pt", "running")]
    unfinished.append("results/failed/mnist/d.json")
    caches = ["tests/__pycache__/e.pyc", ".pytest_cache/f", ".hypothesis/g", ".ruff_cache/h"]
    finish(tree, *kept, *unfinished, *caches)
    output = make(tree, "clean")
    assert not any((tree / name).exists() for name in caches) and "tests/__pycache__" in output
    assert all((tree / name).exists() for name in kept + unfinished)
    output = make(tree, "clean-unfinished")
    assert not any((tree / name).exists() for name in unfinished)
    assert all(name in output for name in unfinished)
    assert all((tree / name).exists() for name in kept)


def public_targets() -> list[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.findall(r"^([a-z0-9_-]+):.*## ", text, re.MULTILINE)


def test_make_alone_prints_one_screen_with_every_public_target_and_group(tree):
    output = make(tree)
    assert output == make(tree, "help") and output.count("\n") <= 48
    wanted = "demo test test-all reproduce-all status failures plan list slurm tables rerun bench"
    wanted += " reference-report same-numbers sync check clean"
    shown = set(re.findall(r"^  make ([a-z0-9_-]+) ", output, re.MULTILINE))
    assert set(wanted.split()) <= set(public_targets()) == shown
    for word in ("RUNS=10", "DATA=data", "LAUNCH=", "JOBS_PER_GPU=", "NETWORK=cnn"):
        assert word in output
    assert set(expected(1).groups) <= set(re.findall(r"[a-z0-9_]+", output))


def test_targets_need_no_environment_when_a_python_is_given_and_make_it_else(tree):
    for target in public_targets():
        said = make(tree, "-n", target, "RUNS=1", "LAUNCH=launch", "PYTHON=python")
        assert ".venv/bin" not in said, target
    for target in ("test", "tables", "demo", "reproduce-regression"):
        said = make(tree, "-n", target, "RUNS=1")
        assert said.count("-m venv .venv") == said.count("-r requirements.txt") == 1


def test_demo_and_tests_do_what_they_say(tree):
    said = make(tree, "-n", "demo", "LAUNCH=launch", "PYTHON=python").splitlines()
    started = sorted(line for line in said if line.startswith(("launch ", "python ")))
    ends = " --results-dir demo --quiet"
    assert started == [
        f"launch MNIST/optdigits.py --network cnn --head both --runs 4{ends}",
        f"launch MNIST/optdigits.py --network cnn --head fc --fc-dropout 0 --runs 4{ends}",
        f"launch Regression/synthetic_regression.py --head both --runs 2{ends}",
        "python tools/demo.py",
    ]
    fast = 'pytest -q -n 2 --dist loadfile -m "not slow" tests'
    assert fast in make(tree, "-n", "test", "PYTHON=python")
    everything = make(tree, "-n", "test-all", "PYTHON=python")
    assert "SPINALNET_UV=1" in everything and "not slow" not in everything
