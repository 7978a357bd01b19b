"""Whatever is typed or found on the disk: no traceback, no silent acceptance. `make test-all` tries 10,000 of each."""

import contextlib
import io
import json
import math
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ROOT, load_script

sys.path.insert(0, str(ROOT / "tools"))
from report import logs as report_logs  # noqa: E402

CASES = int(os.environ.get("SPINALNET_FUZZ", "200"))
FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SCRIPTS = [
    "MNIST/optdigits",
    "EMNIST/emnist_letters",
    "CIFAR/cifar100",
    "Regression/synthetic_regression",
    "Regression/tabular",
    "Transfer_Learning/tl_cifar10",
]
FLAGS = """--network --head --layers --width --protocol --epochs --batch-size --lr --seed --runs --precision --limit
--fc-dropout
    --device --function --noise --csv --target --demo --splits --validation --test --weights --image-size --accumulate
    --workers --quiet --overwrite --no-download --nonsense -- --results-dir --data-dir""".split()
VALUES = ["", " ", "0", "-1", "1", "2", "8", "+3", " 5", "1e400", "-1e400", "nan", "inf", "1.5", "1e-300", "1e-3"]
VALUES += ["9" * 40, "9" * 5000, "0x10", "1_0", "\u0663", "\uff11\uff12", "\u00bd", "cnn", "vgg5"]
VALUES += [
    "fc",
    "spinal",
    "both",
    "published",
    "corrected",
    "fp32",
    "bf16",
    "sum",
    "diabetes",
    "none",
    "\x00",
    "a\nb",
    "--head",
    "../..",
]
VALUES += ["\U0001f4a5", "\udcff", "cpu", "cpu:7", "cuda:99", "meta"]
WHOLE = ["--layers", "--width", "--epochs", "--batch-size", "--seed", "--runs", "--limit", "--splits", "--image-size",
         "--accumulate", "--workers"]  # fmt: skip
ARGUMENT = st.one_of(st.sampled_from(VALUES), st.text(max_size=6), st.none())


class Reached(BaseException):
    """The command line was taken for good: what follows are data and training."""


def typed(script, arguments):
    """(exit status or Reached, options, standard error) of a script's main up to its data."""
    module, taken, errors = load_script(script), [], io.StringIO()
    first = next(name for name in ("load_data", "read_table", "work") if hasattr(module, name))
    parse, load = module.parse_arguments, getattr(module, first)

    def parse_arguments(argv):
        result = parse(argv)
        taken.append(result[0] if isinstance(result, tuple) else result)
        return result

    def stop(*_, **__):
        raise Reached

    module.parse_arguments = parse_arguments
    setattr(module, first, stop)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = module.main(arguments)
    except SystemExit as end:
        code = end.code
    except Reached:
        code = Reached
    finally:
        module.parse_arguments = parse
        setattr(module, first, load)
    return code, taken[-1] if taken else None, errors.getvalue()


def is_refusal(code, error: str) -> bool:
    """argparse's own words, or one sentence of the script's."""
    return code == 2 and "error: " in error and "Traceback" not in error


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_line_is_taken_as_it_is_written_or_refused(script, monkeypatch, tmp_path):
    """No traceback; and what is taken is what a reader takes it for."""
    monkeypatch.chdir(tmp_path)
    seen = set()

    @FUZZ
    @given(st.lists(st.tuples(st.sampled_from(FLAGS), ARGUMENT), max_size=4))
    def check(pairs):
        arguments = [part for flag, value in pairs for part in ((flag,) if value is None else (flag, value))]
        base = ["--demo", "diabetes"] if script.endswith("tabular") else []
        code, options, errors = typed(script, [*base, *arguments])
        seen.add(code)
        if code != Reached:
            assert is_refusal(code, errors), (arguments, errors)
            return
        for flag, value in dict(pairs).items():
            found = getattr(options, flag[2:].replace("-", "_"), None)
            if value is None or found is None:
                continue
            if flag in WHOLE:
                assert found == int(value) and (found > 0 or flag in ("--seed", "--workers")), (flag, value)
            elif flag == "--lr":
                assert float(value) == found and math.isfinite(found) and found > 0, (flag, value)
        for flag in ("epochs", "batch_size", "runs"):
            assert (getattr(options, flag, None) or 1) > 0

    check()
    assert seen == {2, Reached}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_refusal_is_exit_status_2_and_leaves_nothing(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ["--demo", "diabetes"] if script.endswith("tabular") else []
    refused = """--epochs nan; --epochs 0; --lr 1e400; --lr nan; --nonsense; --head x; --runs ½; --runs 0; --device
    nonsense;
        --batch-size -1; --protocol x; extra""".split(";")
    for arguments in map(str.split, refused):
        code, _, error = typed(script, base + arguments)
        assert is_refusal(code, error), (arguments, code, error)
        assert not list(tmp_path.iterdir())
    assert typed(script, [*base, "--seed", "3", "--device", "cpu"])[0] is Reached


REAL_LOGS = [
    sorted((ROOT / "results/reference/logs").glob(pattern))[0]
    for pattern in (
        "mnist/cnn-fc-published-s*.jsonl",
        "mnist/cnn-spinal6x8-corrected-s*.jsonl",
        "synthetic_regression/mlp-fc-corrected-sum-s*.jsonl",
        "tl_hymenoptera/*.jsonl",
    )
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@st.composite
def mutated(draw):
    """A real log with one line, key or stretch of bytes changed; and the folder and name it should lie under."""
    path = draw(st.sampled_from(REAL_LOGS))
    lines = path.read_text().splitlines()[:12] + path.read_text().splitlines()[-1:]
    kind = draw(st.sampled_from(["key", "nested", "drop", "double", "cut", "bytes", "swap"]))
    at = draw(st.integers(0, len(lines) - 1))
    if kind in ("key", "nested"):
        record = json.loads(lines[at])
        inner = sorted(key for key in record if isinstance(record[key], dict)) or ["event"]
        place = record[draw(st.sampled_from(inner))] if kind == "nested" else record
        if isinstance(place, dict) and place:
            place[draw(st.sampled_from(sorted(place)))] = draw(ODD)
        lines[at] = json.dumps(record)
    elif kind == "drop":
        del lines[at]
    elif kind == "double":
        lines.insert(at, lines[at])
    elif kind == "swap":
        lines[at], lines[0] = lines[0], lines[at]
    data = bytearray(("\n".join(lines) + "\n").encode())
    if kind == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    if kind == "bytes":
        for _ in range(draw(st.integers(1, 5))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return path, bytes(data)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@FUZZ
@given(mutated())
def test_a_damaged_log_is_refused_or_its_numbers_agree(scratch, case):
    """Never another exception than BadLog. What is accepted is consistent: as many epochs as its settings say."""
    original, data = case
    path = Path(scratch) / original.parent.name / original.name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    try:
        log = report_logs.read_log(path, path.name, path.parent.name)
    except report_logs.BadLog as error:
        assert error.line >= 1 and str(error)
        return
    assert log.end["outcome"] == "diverged" or len(log.curve) == log.settings["epochs"] == log.end["epochs"]
    assert log.regression or 0 <= log.score <= 100


# ---- Decisive settings
# -----------------------------------------------------------------------------------------------------
def group_of(tmp_path, change, where):
    """Two seeds of a real row, the second one changed; how the aggregator's command line and its cells take them."""
    from report import make, paper, rows

    folder = tmp_path / "logs" / "mnist"
    folder.mkdir(parents=True)
    for seed in (0, 1):
        name = f"cnn-fc-published-s{seed}.jsonl"
        lines = (ROOT / "results/reference/logs/mnist" / name).read_text().splitlines()
        if seed:
            start = json.loads(lines[0])
            (start["settings"] if where == "settings" else start["data"]).update(change)
            lines[0] = json.dumps(start)
        (folder / name).write_text("\n".join(lines) + "\n")
    assert make.main(["--results-dir", str(tmp_path), "--check"]) == 1  # nothing is written yet
    logs, findings = report_logs.read_logs(tmp_path / "logs")
    sorted_out = rows.sort_into_rows(logs, paper.read_paper(ROOT / "results/paper.csv"))
    return [len(group) for group in sorted_out.runs.values()], len(findings) + len(sorted_out.findings) + len(
        sorted_out.others
    )


SETTINGS = {
    "epochs": 9,
    "batch_size": 65,
    "learning_rate": 0.02,
    "optimizer": "Adam",
    "rate_rule": "x0.5",
    "augmentation": ["rotation10"],
    "mean": 0.1,
    "std": 0.2,
    "fc_dropout": 0.25,
    "selection": "best_test",
    "limit": 100,
    "precision": "bf16",
    "new": 1,
}


@pytest.mark.parametrize(
    "change, where",
    [
        ({}, "settings"),
        *(({key: value}, "settings") for key, value in SETTINGS.items()),
        ({"sha256": "0123456789abcdef"}, "data"),
        ({"official": False}, "data"),
    ],
)
def test_runs_whose_decisive_settings_differ_are_never_averaged(tmp_path, capsys, change, where):
    groups, apart = group_of(tmp_path, change, where)
    assert (groups, apart) == (([2], 0) if not change else ([1], 1)), capsys.readouterr().err
