"""README.md and the committed report say what is there."""
import re
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for folder in ("MNIST", "EMNIST", "CIFAR", "Regression", "Transfer_Learning")
                 for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_readme_names_every_script(script):
    assert script.split("/")[1] in README


def test_make_targets_in_the_readme_exist():
    wanted = set(re.findall(r"^    make ([a-z0-9_-]+)", README, re.MULTILINE))
    assert {"demo", "test", "reproduce-all", "tables"} <= wanted
    for target in wanted:
        done = subprocess.run(["make", "-n", target, "PYTHON=python", "LAUNCH=python", "RUNS=1"], cwd=ROOT, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr


def test_links_in_the_readme_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_figures_of_the_kill_test_are_those_of_its_report():
    lines, seconds = re.search(r"of ([\d,]+) lines none differed, and SIGTERM and Ctrl-C ended a\s+run within ([\d.]+) s", README).groups()
    table = (ROOT / "results/robustness.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| all \| 50 \| 70 \| \d+ \| {lines} \| 0 \|", table, re.MULTILINE)
    assert max(map(float, re.findall(r"([\d.]+) s of 1", table))) == float(seconds)


def test_tables_are_what_the_committed_logs_give():
    done = subprocess.run([sys.executable, "results/aggregate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
