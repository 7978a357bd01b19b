"""Runs that are killed, stopped or started again: nothing is lost, numbers stay the same."""

import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import made_up_data
from conftest import lines_of, load_script, logs_in, run

SHORT = ["--epochs", "2", "--quiet"]
CORRECTED = [*SHORT, "--protocol", "corrected", "--head", "spinal"]
TRANSFER = ["--weights", "none", "--network", "resnet18", "--image-size", "32", "--workers", "0"]
SUM = ["--function", "sum", "--head", "spinal"]
FAMILIES = {  # script: flags of two epochs that need all that a checkpoint holds
    "MNIST/mnist": [*CORRECTED, "--lr", "0.1"],
    "MNIST/fashion_mnist": [*CORRECTED, "--network", "vgg5", "--limit", "20", "--batch-size", "10"],
    "EMNIST/emnist_letters": CORRECTED,
    "CIFAR/cifar10": [*CORRECTED, "--network", "lenet"],
    "Regression/synthetic_regression": [*SHORT, *SUM],
    "Regression/tabular": [*SHORT, "--demo", "diabetes", "--head", "spinal"],
    "Transfer_Learning/tl_hymenoptera": [*CORRECTED, *TRANSFER, "--batch-size", "8"],
}
mnist = load_script("MNIST/mnist")
MNIST = [*FAMILIES["MNIST/mnist"], "--epochs", "3"]


def start(script: str, data: Path, results: Path, *flags: str) -> int:
    """Exit status of the script's main; regression scripts read no data."""
    if not script.startswith("Regression"):
        return run(script, data, results, *flags)
    flags = ["--results-dir", str(results), "--device", "cpu", *flags]
    module = load_script(script)
    try:
        return module.main(flags)
    except SystemExit as end:
        if end.code == 2 and "--device" in flags:  # tables are trained on the CPU only
            return module.main([x for x in flags if x not in ("--device", "cpu")])
        return end.code


def state(results: Path) -> dict:
    """All files below a folder."""
    files = [path for path in sorted(results.rglob("*")) if path.is_file()]
    return {path.relative_to(results).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sets(data, tmp_path_factory) -> Path:
    """Data for all families."""
    folder = tmp_path_factory.mktemp("sets")
    for script in ("CIFAR/cifar10", "Transfer_Learning/tl_hymenoptera"):
        made_up_data.write_for(script, folder)
    for path in data.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def any_content():
    """torchvision takes made-up CIFAR images."""
    names = made_up_data.CHECKED
    before = {name: getattr(made_up_data.torchvision.datasets, name) for name in names}
    made_up_data.accept_any_content()
    yield
    for name, source in before.items():
        setattr(made_up_data.torchvision.datasets, name, source)


def slow_but(scripts: dict, *quick: str) -> list:
    """Parameters of a test, slow ones but for these."""
    marked = []
    for script in scripts:
        marks = () if script in quick else pytest.mark.slow
        marked.append(pytest.param(script, marks=marks))
    return marked


# ---- Killed and continued -----------------------------------------------------------------------
class Killed(BaseException):
    """The process ends here: nothing of the script's own catches this."""


def watch(monkeypatch, stop: int, half: bool) -> list[str]:
    """Ends the process at the step `stop` of those that change files, before it or halfway."""
    steps = []

    def wrap(place, name, damage):
        original = getattr(place, name)

        def step(*arguments, **more):
            steps.append(name)
            if len(steps) == stop:
                if half and damage:
                    original(*arguments, **more)
                    damage(arguments)
                raise Killed
            return original(*arguments, **more)

        monkeypatch.setattr(place, name, step)

    def cut_saved(arguments):
        path = arguments[1]
        if isinstance(path, str | os.PathLike):
            os.truncate(path, os.path.getsize(path) // 2)

    def cut_open(arguments):
        os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)

    wrap(torch, "save", cut_saved)
    wrap(os, "fsync", cut_open)
    wrap(os, "replace", None)
    wrap(Path, "unlink", None)
    return steps


@pytest.mark.parametrize("script", slow_but(FAMILIES, "MNIST/mnist"))
def test_a_run_killed_at_any_step_of_its_writing_ends_like_an_uninterrupted_one(
    script, sets, tmp_path, monkeypatch, any_content
):
    """Before each step that changes a file, and in the middle of it."""
    flags = FAMILIES[script]
    with monkeypatch.context() as patch:
        steps = watch(patch, 0, half=False)
        assert start(script, sets, tmp_path / "whole", *flags) == 0
    whole, kinds = logs_in(tmp_path / "whole"), list(steps)
    assert {"save", "fsync", "replace", "unlink"} == set(kinds)
    for stop, half in itertools.product(range(1, len(kinds) + 1), (False, True)):
        if half and kinds[stop - 1] not in ("save", "fsync"):
            continue
        results = tmp_path / f"{stop}{half}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            watch(patch, stop, half)
            start(script, sets, results, *flags)
        assert start(script, sets, results, *flags) == 0
        assert logs_in(results) == whole, f"killed at step {stop}, {kinds[stop - 1]}"
        left = {Path(name).suffix for name in state(results)}
        # A checkpoint beside a finished log is all that a kill at the very last step leaves.
        assert left == {".jsonl"} or stop == len(kinds) and left == {".jsonl", ".pt"}


@contextlib.contextmanager
def child(function, *arguments):
    """A copy of this process that ends with the function's status. Yields its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        status = 99
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            status = function(*arguments)
        os._exit(status)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def epochs_of(results: Path) -> int:
    """Epochs in the unfinished logs."""
    return sum(p.read_text().count('"epoch", "epoch"') for p in results.glob("logs/*/*.part"))


@pytest.mark.parametrize(
    "kind, status",
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)],
)
def test_a_run_stopped_by_a_signal_goes_on(data, tmp_path, kind, status):
    """At random moments between the epochs' ends; Ctrl-C (SIGINT) is status 130."""
    long, chance = [*MNIST, "--epochs", "30"], random.Random(0)
    assert run("MNIST/mnist", data, tmp_path / "whole", *long) == 0
    results, wanted = tmp_path / "stopped", 0
    for _ in range(2):
        wanted += chance.randint(2, 5)
        with child(run, "MNIST/mnist", data, results, *long) as pid:
            deadline = time.monotonic() + 60
            while epochs_of(results) < wanted and time.monotonic() < deadline:
                time.sleep(chance.uniform(0, 0.01))
            os.kill(pid, kind)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    assert run("MNIST/mnist", data, results, *long) == 0
    assert logs_in(results) == logs_in(tmp_path / "whole")
    (log,) = results.glob("logs/mnist/*.jsonl")
    again = [x for x in map(json.loads, log.read_text().splitlines()) if x["event"] == "resume"]
    assert len(again) == 2 and again[-1]["epoch"] >= wanted - 1  # it may be half saved
    assert again[0]["provenance"] == json.loads(log.read_text().splitlines()[0])["provenance"]


def stopped(results: Path, data: Path, monkeypatch, script="MNIST/mnist", flags=MNIST) -> Path:
    """A run that Ctrl-C ends in its third epoch; its checkpoint."""
    module, calls = load_script(script), []
    epoch = module.Trainer.epoch

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return epoch(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "epoch", interrupted)
        assert start(script, data, results, *flags) == 130
    (checkpoint,) = results.glob("logs/*/*.pt")
    return checkpoint


def test_ctrl_c_is_one_sentence_and_the_run_goes_on(data, tmp_path, monkeypatch, capsys):
    checkpoint = stopped(tmp_path, data, monkeypatch)
    error = capsys.readouterr().err
    assert error.splitlines() == ["stopped: the same command, without --overwrite, goes on"]
    lines = lines_of(checkpoint.with_suffix(".jsonl.part"))
    assert [line["event"] for line in lines] == ["start", "epoch", "epoch"]
    assert torch.load(checkpoint, weights_only=True)["state"]["epoch"] == 2
    assert run("MNIST/mnist", data, tmp_path, *MNIST) == 0
    assert "goes on after epoch 2" in capsys.readouterr().out


# ---- Checkpoints --------------------------------------------------------------------------------
class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def first_line(path: Path, part: str, **changes) -> None:
    """Changes the first line of the log that a checkpoint holds."""
    saved = torch.load(path, weights_only=True)
    saved["state"]["lines"][0][part] |= changes
    torch.save(saved, path)


def damage(kind: str, path: Path, tmp_path: Path) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "page":
        path.write_bytes(b"<html>404</html>")
    elif kind == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif kind == "evil":
        torch.save({"state": Evil(tmp_path / "executed")}, path)
    elif kind == "settings":
        first_line(path, "settings", learning_rate=0.5)
    elif kind == "data":
        first_line(path, "data", sha256="0" * 16)
    elif kind == "text":
        first_line(path, "provenance", script_sha256="0" * 16)


DAMAGES = {  # kind: what the sentence says
    **dict.fromkeys(["empty", "cut", "page", "foreign", "evil"], "damaged"),
    "settings": "other learning_rate",
    "data": "other data",
    "text": "another version of this script",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_checkpoint_that_does_not_fit_is_refused_and_kept(
    data, tmp_path, monkeypatch, capsys, kind
):
    results = tmp_path / "results"
    damage(kind, stopped(results, data, monkeypatch), tmp_path)
    before = state(results)
    capsys.readouterr()
    assert run("MNIST/mnist", data, results, *MNIST) == 2
    printed = capsys.readouterr()
    (error,) = printed.err.splitlines()
    assert DAMAGES[kind] in error and "--overwrite starts anew" in error and not printed.out
    assert state(results) == before and not (tmp_path / "executed").exists()
    assert run("MNIST/mnist", data, results, *MNIST, "--overwrite") == 0
    (log,) = state(results)
    assert log.endswith(".jsonl") and '"resume"' not in (results / log).read_text()


def test_another_machine_goes_on_and_the_log_says_so(data, tmp_path, monkeypatch):
    checkpoint = stopped(tmp_path, data, monkeypatch)
    versions = {"torch": "2.11.0", "torchvision": "0.26.0"}
    first_line(checkpoint, "provenance", threads=9, device_name="another", versions=versions)
    assert run("MNIST/mnist", data, tmp_path, *MNIST) == 0
    (log,) = tmp_path.glob("logs/mnist/*")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [x["event"] for x in lines] == ["start", "epoch", "epoch", "resume", "epoch", "end"]
    assert lines[0]["provenance"]["threads"] == 9 and lines[3]["provenance"]["threads"] == 1
    assert lines[3]["epoch"] == 2 and lines[3]["provenance"]["versions"]["torch"] != "2.11.0"


# ---- Finished runs ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> dict:
    results = tmp_path_factory.mktemp("finished")
    assert run("MNIST/mnist", data, results, *MNIST) == 0
    return state(results)


def written(files: dict, results: Path) -> Path:
    for name, content in files.items():
        (results / name).parent.mkdir(parents=True)
        (results / name).write_bytes(content)
    return results / name


def changed_start(log: Path, part: str, **changes) -> None:
    first, *rest = log.read_text().splitlines()
    start = json.loads(first)
    start[part] |= changes
    log.write_text("\n".join([json.dumps(start), *rest]) + "\n")


def test_a_finished_run_is_not_run_again_unless_asked(
    data, tmp_path, finished, monkeypatch, capsys
):
    log = written(finished, tmp_path)
    end = json.loads(log.read_text().splitlines()[-1])
    with monkeypatch.context() as patch:
        patch.delattr(mnist.Trainer, "epoch")  # nothing is trained
        assert run("MNIST/mnist", data, tmp_path, *MNIST) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"already finished {end['ended']} (--overwrite runs it again): ")
        assert f"{end['selected_test_accuracy_pct']:.2f} %" in printed
        assert state(tmp_path) == finished
        changed_start(log, "provenance", script_sha256="0" * 16)
        assert run("MNIST/mnist", data, tmp_path, *MNIST) == 0
        assert "by another version of this script" in capsys.readouterr().out
    assert run("MNIST/mnist", data, tmp_path, *MNIST, "--overwrite") == 0
    assert lines_of(log) == [*logs_in(tmp_path).values()][0]
    sha256 = json.loads(log.read_text().splitlines()[0])["provenance"]["script_sha256"]
    assert sha256 != "0" * 16


LOGS = {"empty": "damaged", "cut": "damaged", "no end": "damaged"}
LOGS |= {"settings": "other momentum", "data": "other data"}


@pytest.mark.parametrize("kind", LOGS)
def test_a_finished_log_that_does_not_fit_is_refused_and_kept(
    data, tmp_path, finished, capsys, kind
):
    log = written(finished, tmp_path)
    if kind == "settings":
        changed_start(log, "settings", momentum=0.9)
    elif kind == "data":
        changed_start(log, "data", sha256="0" * 16)
    else:
        keep = {"empty": 0, "cut": log.stat().st_size - 40}
        length = len(b"\n".join(log.read_bytes().splitlines()[:-1])) + 1
        os.truncate(log, keep.get(kind, length))
    before = state(tmp_path)
    assert run("MNIST/mnist", data, tmp_path, *MNIST) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert LOGS[kind] in error and "--overwrite" in error and log.stem in error
    assert state(tmp_path) == before


def test_weights_that_were_not_saved_are_said_to_be_missing(data, tmp_path, finished, capsys):
    written(finished, tmp_path)
    assert run("MNIST/mnist", data, tmp_path, *MNIST, "--save-weights") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "its weights were not saved" in error and "--overwrite" in error
    assert run("MNIST/mnist", data, tmp_path, *MNIST, "--save-weights", "--overwrite") == 0
    assert run("MNIST/mnist", data, tmp_path, *MNIST, "--save-weights") == 0
    assert capsys.readouterr().out.count("weights: ") == 2


# ---- Disk ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("script", FAMILIES)
def test_what_is_renamed_is_on_the_disk_before(script, sets, tmp_path, monkeypatch, any_content):
    """Each file is flushed to the disk (fsync) before it takes the place of another one."""
    on_disk, renamed = set(), []
    fsync, replace = os.fsync, os.replace

    def noted(descriptor):
        on_disk.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(old, new):
        renamed.append((Path(new).suffix, os.stat(old).st_ino in on_disk))
        on_disk.clear()
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", checked)
    assert start(script, sets, tmp_path, *FAMILIES[script]) == 0
    assert {suffix for suffix, _ in renamed} >= {".pt", ".jsonl"}
    assert all(flushed for _, flushed in renamed), renamed


@pytest.mark.parametrize("limit", [1_000, 20_000])  # bytes of a file: no log, no checkpoint
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(data, tmp_path, finished, capsys, limit):
    """Files that may not grow stand in for it; the same command goes on when there is space."""
    resource = pytest.importorskip("resource")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    written(finished, tmp_path)
    sizes = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, sizes[1]))
    try:
        code = run("MNIST/mnist", data, tmp_path, *MNIST, "--seed", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, sizes)
        signal.signal(signal.SIGXFSZ, before)
    (error,) = capsys.readouterr().err.splitlines()
    assert code == 2 and error.startswith("error: ")
    assert {name: state(tmp_path)[name] for name in finished} == finished
    assert run("MNIST/mnist", data, tmp_path, *MNIST, "--seed", "1") == 0
    assert len(logs_in(tmp_path)) == 2
