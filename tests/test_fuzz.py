"""Whatever is typed or found on the disk: no traceback, no silent acceptance. `make fuzz` tries 10,000 cases of each."""
import contextlib
import io
import json
import math
import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT, load_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / "results"))
from report import logs as report_logs  # noqa: E402

CASES = int(os.environ.get("SPINALNET_FUZZ", "300"))
FUZZ = settings(max_examples=CASES, deadline=None, derandomize=True, database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
SCRIPTS = ["MNIST/optdigits", "EMNIST/emnist_letters", "CIFAR/cifar100", "Regression/synthetic_regression", "Regression/tabular",
           "Transfer_Learning/tl_cifar10"]
FLAGS = ["--network", "--head", "--layers", "--width", "--protocol", "--epochs", "--batch-size", "--lr", "--seed", "--runs", "--precision",
         "--limit", "--fc-dropout", "--device", "--function", "--noise", "--csv", "--target", "--demo", "--splits", "--validation", "--test",
         "--weights", "--image-size", "--accumulate", "--workers", "--quiet", "--overwrite", "--no-download", "--nonsense", "--"]
VALUES = ["", " ", "0", "-1", "1", "2", "8", "1e400", "-1e400", "nan", "inf", "1.5", "1e-300", "9" * 40, "0x10", "1_0", "٣", "½", "cnn", "vgg5",
          "fc", "spinal", "both", "published", "corrected", "fp32", "bf16", "sum", "diabetes", "none", "\x00", "a\nb", "--head", "../..", "💥"]
WHOLE, REAL = ("layers", "width", "epochs", "batch_size", "runs", "limit", "splits"), ("lr",)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_line_is_read_or_refused_in_one_sentence(script):
    module = load_script(script)

    @FUZZ
    @given(st.lists(st.tuples(st.sampled_from(FLAGS), st.one_of(st.sampled_from(VALUES), st.text(max_size=6), st.none())), max_size=5))
    def check(pairs):
        arguments = [part for flag, value in pairs for part in ((flag,) if value is None else (flag, value))]
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            try:
                options = module.parse_arguments(arguments)
            except module.UserError as error:
                assert str(error).strip() and not errors.getvalue()
                return
        for name in WHOLE:
            value = getattr(options, name, None)
            assert value is None or type(value) is int and 1 <= value < 2**31, (name, value)
        for name in REAL:
            value = getattr(options, name, None)
            assert value is None or math.isfinite(value) and value > 0, (name, value)
        for name, low, high in (("fc_dropout", 0, 1), ("validation", 0, 1), ("seed", 0, 2**31)):
            value = getattr(options, name, None)
            assert value is None or type(value) in (int, float) and low <= value < high or name != "seed" and isinstance(value, str)

    check()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_refusal_is_exit_status_2_and_leaves_nothing(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in (["--epochs", "nan"], ["--lr", "1e400"], ["--seed", "-1"], ["--nonsense"], ["--head", ""], ["--runs", "½"]):
        assert load_script(script).main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and not list(tmp_path.iterdir())


REAL_LOGS = [ROOT / "results/logs" / name for name in (
    "mnist/cnn-fc-published-s0.jsonl", "mnist/cnn-spinal6x8-corrected-s3.jsonl", "synthetic_regression/mlp-fc-corrected-sum-s0.jsonl",
    "tl_hymenoptera/resnet18-fc-published-e5-wnone-px64-data8094c640-s0.jsonl")]
ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
                st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))


@st.composite
def mutated(draw):
    """A real log with one line, key or stretch of bytes changed; and the folder and name it should lie under."""
    path = draw(st.sampled_from(REAL_LOGS))
    lines = path.read_text().splitlines()[:12] + path.read_text().splitlines()[-1:]
    at, kind = draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from(["key", "nested", "drop", "double", "cut", "bytes", "swap"]))
    if kind in ("key", "nested"):
        record = json.loads(lines[at])
        place = record[draw(st.sampled_from(sorted(k for k in record if isinstance(record[k], dict)) or ["event"]))] if kind == "nested" else record
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
    """Never another exception than BadLog. What is accepted is consistent: its epochs are as many as its settings say."""
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
