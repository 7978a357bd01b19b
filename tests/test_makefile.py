"""The Makefile: each row of the tables is one command for one log, finished logs are not made again, help tells the truth.

No test trains or installs: make only prints what it would do, or runs a stand-in for the scripts.
"""
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = ("sum", "sinsum", "product", "sinproduct")
SETS = {"mnist": "MNIST", "fashion_mnist": "MNIST", "kmnist": "MNIST", "qmnist": "MNIST",
        "emnist_digits": "EMNIST", "emnist_letters": "EMNIST", "emnist_balanced": "EMNIST"}
HEADS = {"cnn": ("fc", "spinal6x8", "spinal6x10"), "vgg5": ("fc", "spinal4x128")}
CIFAR = {"cifar10": {"vgg11": "4x1024", "vgg13": "4x1024", "vgg19": "4x512", "resnet18": "4x20 4x256", "resnet34": "4x256",
                     "densenet": "8x16 8x64", "cnn": "4x128"},
         "cifar100": {"vgg11": "4x1024", "vgg13": "4x1024", "vgg16": "4x512", "vgg19": "4x512", "resnet18": "4x128 4x512",
                      "resnet34": "4x128 4x512", "cnn": "4x256"}}
TABLE_II = [(name, folder, HEADS) for name, folder in SETS.items()] + [
    (name, "CIFAR", {network: ("fc", *(f"spinal{size}" for size in sizes.split())) for network, sizes in networks.items()})
    for name, networks in CIFAR.items()]
TRANSFER = {"tl_cifar10": 20, "tl_cifar100": 512, "tl_caltech101": 101, "tl_bird225": 225, "tl_stanford_cars": 196, "tl_svhn": 20,
            "tl_cinic10": 20, "tl_stl10": 20, "tl_oxford_flowers102": 101, "tl_fruits360": 131}
TABLE_III = [(name, "Transfer_Learning", {"wide_resnet101_2": ("fc", f"spinal4x{width}"), "vgg19_bn": ("fc", "spinal4x1024")})
             for name, width in TRANSFER.items()]
TRANSFER_OTHER = [("tl_mnist", "vgg19_bn", "4x1024"), ("tl_fashion_mnist", "wide_resnet101_2", "4x1024"),
                  ("tl_hymenoptera", "resnet18", "6x5"), ("tl_monkey10", "alexnet", "4x20"),
                  ("tl_monkey10", "wide_resnet101_2", "4x20"), ("tl_intel_image", "wide_resnet101_2", "4x20")]
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
                    log = f"synthetic_regression/mlp-{label}-{protocol}-{function}{noise and '-broadcast'}-s{seed}.jsonl"
                    runs[log] = (f"Regression/synthetic_regression.py --function {function}{noise and ' --noise broadcast'} "
                                 f"--head {head} --protocol {protocol} --seed {seed} --quiet")
        for name, folder, heads in TABLE_II + TABLE_III:
            for network, labels in heads.items():
                for label in labels:
                    head = re.sub(r"spinal(\d+)x(\d+)", r"spinal --layers \1 --width \2", label)
                    for protocol in PROTOCOLS:
                        runs[f"{name}/{network}-{label}-{protocol}-s{seed}.jsonl"] = (
                            f"{folder}/{name}.py --network {network} --head {head} --protocol {protocol} --seed {seed} "
                            "--data-dir data --quiet")
    return {f"results/logs/{log}": command for log, command in runs.items()}


@pytest.fixture
def tree(tmp_path):
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "results").mkdir()
    return tmp_path


def make(tree, *arguments: str, status: int = 0) -> str:
    """Output of make, standard error included, without the settings of the make that runs these tests."""
    ours = ("MAKE", "MFLAGS", "RUNS", "DATA", "PYTHON", "LAUNCH", "DEMO_RUNS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(["make", *arguments], cwd=tree, env=environment, text=True, timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == status, done.stdout
    return done.stdout


def commands(tree, *arguments: str) -> Counter:
    """The training commands that make would run, each with its number of occurrences."""
    lines = make(tree, "-n", "LAUNCH=launch", "PYTHON=python", *arguments).splitlines()
    return Counter(line.removeprefix("launch ") for line in lines if line.startswith("launch ") and " --seed " in line)


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
    assert "warning" not in make(tree, "-n", "reproduce-all", "reproduce-arch2", "LAUNCH=launch", "PYTHON=python")


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
    assert "Nothing to be done" in make(tree, "-n", "reproduce-all", "RUNS=1")


def test_newer_scripts_do_not_void_finished_runs(tree):
    finish(tree, *expected_runs(1))
    (tree / "MNIST").mkdir()
    (tree / "MNIST" / "mnist.py").touch()
    (tree / "requirements.txt").touch()
    assert "Nothing to be done" in make(tree, "-n", "reproduce-all", "RUNS=1")


@pytest.mark.parametrize("target, part", [("regression", "Regression/"), *((name, f"{folder}/{name}.py") for name, folder in SETS.items()),
                                          ("mnist-family", "MNIST/"), ("emnist-family", "EMNIST/"),
                                          ("transfer", "Transfer_Learning/"), ("tl_stl10", "Transfer_Learning/tl_stl10.py")])
def test_family_targets_run_their_part(tree, target, part):
    expected = Counter(command for command in expected_runs(1).values() if command.startswith(part))
    assert expected and commands(tree, f"reproduce-{target}", "RUNS=1") == expected


def test_arch2_stands_apart_with_two_runs(tree):
    sizes = {"mnist": "26x30", "fashion_mnist": "26x300", "kmnist": "26x50", "qmnist": "26x50", "emnist_digits": "26x50"}
    runs = {f"results/logs/{name}/arch2-spinal{size}-{protocol}-s{seed}.jsonl":
            f"{SETS[name]}/{name}.py --network arch2 --head spinal --protocol {protocol} --seed {seed} --data-dir data --quiet"
            for name, size in sizes.items() for protocol in PROTOCOLS for seed in range(2)}
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
                    runs[log] = (f"Transfer_Learning/{name}.py --network {network} --head {head.format(layers=layers, width=width)} "
                                 f"--protocol {protocol} --seed {seed} --data-dir data --quiet")
    assert commands(tree, "reproduce-tl_other") == Counter(runs.values())
    finish(tree, *runs)
    assert not commands(tree, "reproduce-tl_other")


def test_settings_reach_the_commands(tree):
    lines = make(tree, "-n", "reproduce-mnist", "RUNS=1", "LAUNCH=srun python", "DATA=/tmp/sets").splitlines()
    assert "srun python MNIST/mnist.py --fetch-only --data-dir /tmp/sets" in lines
    training = "--network cnn --head fc --protocol published --seed 0 --data-dir /tmp/sets --quiet"
    assert f"srun python MNIST/mnist.py {training}" in lines
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
    sys.exit(2)
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
    expected = {command for command in expected_runs(1).values() if command.startswith(("Regression/", "MNIST/mnist.py"))}
    fetch = "MNIST/mnist.py --fetch-only --data-dir data"
    assert Counter(calls) == Counter([fetch, *expected])
    assert calls.index(fetch) < min(i for i, call in enumerate(calls) if call.startswith("MNIST/mnist.py --network"))
    assert stand_in(tree, "-j4", "reproduce-mnist", "reproduce-regression", "RUNS=1") == []
    assert len(stand_in(tree, "-j4", "reproduce-mnist", "RUNS=2")) == 10, "more runs: only the new seeds, no second fetch"


def test_failed_runs_stop_nothing_under_k_and_are_repeated(tree, monkeypatch):
    monkeypatch.setenv("FAIL_SEED", "1")
    assert len(stand_in(tree, "-k", "reproduce-mnist", "RUNS=3", status=2)) == 1 + 30
    monkeypatch.delenv("FAIL_SEED")
    calls = stand_in(tree, "-k", "reproduce-mnist", "RUNS=3")
    assert len(calls) == 10 and all(" --seed 1 " in call for call in calls)


def test_status_counts_done_unfinished_and_missing(tree):
    logs = [log for log in expected_runs(2) if "/kmnist/" in log]
    finish(tree, *logs[:3], logs[0] + ".part", logs[3] + ".part")
    rows = dict(line.split(None, 1) for line in make(tree, "status", "RUNS=2").splitlines())
    assert rows["reproduce-kmnist"].split() == ["3", "1", "16"]
    assert rows["reproduce-regression"].split() == ["0", "0", "48"]


def test_clean_keeps_logs_and_data_and_names_what_it_removes(tree):
    kept = ["results/logs/mnist/a.jsonl", "data/MNIST/raw", "demo/logs/x/b.jsonl", "data/__pycache__/c", ".venv/__pycache__/c"]
    unfinished = ["results/logs/mnist/d.jsonl.part", "results/checkpoints/mnist/d.pt"]
    caches = ["tests/__pycache__/e.pyc", ".pytest_cache/f", ".hypothesis/g"]
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


def test_make_alone_prints_help_with_every_public_target(tree):
    output = make(tree)
    assert output == make(tree, "help")
    wanted = {"demo", "test", "tables", "sync", "check", "status", "clean", "reproduce-all", "reproduce-regression",
              "reproduce-mnist-family", "reproduce-transfer",
              *(f"reproduce-{name}" for name in (*SETS, *CIFAR, *TRANSFER))}
    assert wanted <= set(public_targets()) == set(re.findall(r"^  make ([a-z0-9_-]+) ", output, re.MULTILINE))
    assert all(name in output for name in ("RUNS=10", "DATA=data", "LAUNCH=", "DEMO_RUNS=2"))


@pytest.mark.parametrize("target", public_targets())
def test_target_of_help_exists_and_needs_no_environment_when_a_python_is_given(tree, target):
    assert ".venv/bin" not in make(tree, "-n", target, "RUNS=1", "LAUNCH=launch", "PYTHON=python")


def test_every_group_of_rows_has_a_line_in_help(tree):
    groups = [line.split()[0] for line in make(tree, "status", "RUNS=1").splitlines()[1:]]
    assert set(groups) <= set(public_targets())


def test_environment_is_made_where_its_python_is_used(tree):
    for target in ("test", "tables", "demo", "reproduce-regression"):
        lines = make(tree, "-n", target, "RUNS=1").splitlines()
        assert sum("-m venv .venv" in line for line in lines) == sum("-r requirements.txt" in line for line in lines) == 1


def test_demo_keeps_to_its_own_folder(tree):
    lines = make(tree, "-n", "demo", "LAUNCH=launch", "PYTHON=python").splitlines()
    regression = "launch Regression/synthetic_regression.py --head both --protocol {} --runs 2 --results-dir demo --quiet"
    assert Counter(line for line in lines if line.startswith(("launch ", "python "))) == Counter([
        *(regression.format(protocol) for protocol in PROTOCOLS),
        "launch MNIST/optdigits.py --network cnn --head both --runs 3 --results-dir demo --quiet",
        "python results/aggregate.py --results-dir demo"])
