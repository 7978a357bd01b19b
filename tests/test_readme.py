"""README.md says what is there: scripts, targets, links, numbers; its code runs."""

import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("MNIST", "EMNIST", "CIFAR", "Regression", "Transfer_Learning")
SCRIPTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))
NUMBER = re.compile(r"(?<![\d.])[+−-]?\d+\.\d+")


def test_readme_is_one_page():
    assert README.count("\n") <= 110
    for figure in ("heads", "dropout"):
        assert README.count(f"](results/reference/figures/{figure}.png)") == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_readme_names_every_script_in_its_folder(script):
    row = next(line for line in README.splitlines() if f"`{script.name}`" in line)
    above = README[: README.index(row)] + row
    assert re.findall(r"\[(\w+)\]\(\1\)", above)[-1] == script.parent.name


def test_make_targets_in_the_readme_exist_and_ci_types_the_first_two():
    wanted = set(re.findall(r"^    make ([a-z][a-z0-9_-]*)", README, re.MULTILINE))
    assert {"demo", "test", "reproduce-all", "tables", "plan"} <= wanted
    for target in wanted:
        command = ["make", "-n", target, "PYTHON=python", "LAUNCH=python", "RUNS=1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    section = README.split("## Two commands")[1].split("## ")[0]
    commands = re.findall(r"^    make (\w+)", section, re.MULTILINE)
    run = (ROOT / ".ci/run").read_text(encoding="utf-8")
    typed = re.findall(r"^make --no-print-directory (\w+)", run, re.MULTILINE)
    assert commands == ["demo", "test"] == typed


def test_links_in_the_readme_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_numbers_of_the_first_page_are_those_of_the_report():
    """Each decimal number of the summary is in the made part, which the next test compares."""
    summary = README.split("\n## ")[0].replace("(https://arxiv.org/abs/2007.03347)", "")
    made = README.split("<!-- begin: made by make")[1].split("<!-- end:")[0]
    numbers = NUMBER.findall(summary.replace("arXiv 2007.03347", ""))
    ours = [number for number in numbers if number != "0.5"]  # the published dropout
    assert len(ours) >= 4 and not set(ours) - set(NUMBER.findall(made))


def test_report_is_what_the_committed_logs_give():
    command = [sys.executable, "tools/report/make.py", "--reference", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_head_fits_another_network_as_the_readme_says():
    code = re.search(r"<!-- head -->\n```python\n(.*?)```", README, re.DOTALL)[1]
    here = {"cwd": ROOT, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], **here)
    assert done.stdout.strip() == "torch.Size([2, 10])", done.stderr


def test_citation_licence_and_bytes():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for part in ("arxiv.org/abs/2007.03347", "Kabir", "cff-version: 1.2.0"):
        assert part in citation
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    if not (ROOT / ".git").exists():
        pytest.skip("no git here")
    command = ["git", "ls-files", "--eol"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        assert "i/crlf" not in line and ("eol=lf" in line or "-text" in line), line
    assert os.access(ROOT / "tools/slurm.sh", os.X_OK)
