"""README.md is short and says what is there: scripts, targets, links, numbers; its code runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("MNIST", "EMNIST", "CIFAR", "Regression", "Transfer_Learning")
SCRIPTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))
NUMBER = re.compile(r"(?<![\d.])[+−-]?\d+\.\d+")


def test_readme_is_one_page():
    assert README.count("\n") <= 130
    assert README.count("](results/reference/figures/forest.png)") == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_readme_names_every_script_in_its_folder(script):
    row = next(line for line in README.splitlines() if f"`{script.name}`" in line)
    above = README[: README.index(row)] + row
    assert re.findall(r"\[(\w+)\]\(\1\)", above)[-1] == script.parent.name


def test_make_targets_in_the_readme_exist():
    wanted = set(re.findall(r"^    make ([a-z][a-z0-9_-]*)", README, re.MULTILINE))
    assert {"demo", "test", "reproduce-all", "tables"} <= wanted
    for target in wanted:
        command = ["make", "-n", target, "PYTHON=python", "LAUNCH=python", "RUNS=1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_ci_types_the_commands_of_the_readme_in_its_order():
    section = README.split("## Two commands")[1].split("## ")[0]
    commands = re.findall(r"^    make (\w+)", section, re.MULTILINE)
    run = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert commands == ["demo", "test"] == re.findall(r"^make --no-print-directory (\w+)", run, re.MULTILINE)


def test_links_in_the_readme_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_numbers_of_the_first_page_are_those_of_the_report():
    """Every decimal number of the summary is one of the made part, which the next test compares with the logs."""
    summary, made = README.split("\n## ")[0], README.split("<!-- begin: made by make")[1].split("<!-- end:")[0]
    numbers = NUMBER.findall(summary.replace("(https://arxiv.org/abs/2007.03347)", "").replace("arXiv 2007.03347", ""))
    ours = [number for number in numbers if number != "0.5"]  # the published dropout
    assert len(ours) >= 4 and not set(ours) - set(NUMBER.findall(made))


def test_report_is_what_the_committed_logs_give():
    done = subprocess.run(
        [sys.executable, "tools/report/make.py", "--reference", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_saved_weights_classify_an_image_as_the_readme_says(tmp_path):
    """Its code, on the handwritten digits instead of MNIST."""
    code = re.search(r"<!-- weights -->\n```python\n(.*?)```", README, re.DOTALL)[1]
    run = "cnn-spinal6x8-published-s0.pt"
    assert code.count("mnist") == 3 and run in code and "white on black" in code
    code = (
        code.replace("MNIST", str(ROOT / "MNIST"))
        .replace("mnist", "optdigits")
        .replace(run, "cnn-spinal6x8-published-e2-s0.pt")
    )
    command = [ROOT / "MNIST/optdigits.py", *"--head spinal --epochs 2 --precision fp32 --save-weights --quiet".split()]
    subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() in map(str, range(10)), done.stderr


def test_citation_and_licence_are_complete():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert "arxiv.org/abs/2007.03347" in citation and "Kabir" in citation and "cff-version: 1.2.0" in citation
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_ruff_has_nothing_to_say():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_scripts_keep_to_their_length():
    """A script is read in one sitting."""
    most = {
        "CIFAR": 520,
        "Transfer_Learning": 460,
        "synthetic_regression.py": 350,
        "tabular.py": 400,
        "universal_approximation.py": 300,
    }
    too_long = {}
    for path in SCRIPTS:
        allowed = most.get(path.name, most.get(path.parent.name, 450))
        if (lines := len(Path(path).read_text(encoding="utf-8").splitlines())) > allowed:
            too_long[path.name] = lines, allowed
    assert not too_long
