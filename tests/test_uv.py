"""Each script with `uv run` from nothing, as a file and from a URL, and in a notebook.

They need a package index and some gigabytes, so they run only when SPINALNET_UV=1 says so:
make test-all.
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest

from conftest import ROOT

wanted = os.environ.get("SPINALNET_UV") == "1"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not wanted, reason="wants a package index")]
SCRIPTS = [path.relative_to(ROOT) for path in sorted(ROOT.glob("[A-Z]*/*.py"))]
SHORT = ["--epochs", "2", "--head", "spinal", "--quiet"]
CELLS = [
    "%pip install -q torch torchvision numpy tqdm scikit-learn\n%run optdigits.py --epochs 20",
    "import json, pathlib\n"
    "for log in sorted(pathlib.Path('results/logs').rglob('*.jsonl')):\n"
    "    start, *_, end = map(json.loads, log.read_text().splitlines())\n"
    "    print(start['settings']['head'], f\"{end['selected_test_accuracy_pct']:.2f} %\")",
]
PACKAGES = "nbclient nbformat ipykernel torch torchvision numpy tqdm scikit-learn pip"
PLAY = """
import json, nbformat, nbclient
cells = [nbformat.v4.new_code_cell(cell) for cell in json.load(open("cells.json"))]
book = nbformat.v4.new_notebook(cells=cells)
nbclient.NotebookClient(book, timeout=600, kernel_name="python3").execute()
for cell in book.cells:
    for output in cell.outputs:
        print(output.output_type, output.get("text") or output.get("data", {}).get("text/plain"))
"""


@pytest.fixture(scope="module")
def uv(tmp_path_factory):
    """Runs uv, installed in a folder of its own, with the cache that uv always has."""
    place = tmp_path_factory.mktemp("uv")
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    install = [place / "venv/bin/pip", "install", "-q", "uv"]
    subprocess.run(install, check=True, capture_output=True)
    hidden = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["UV_LINK_MODE"] = "hardlink"
    keywords = {"env": environment, "text": True, "timeout": 1200}
    keywords |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    def run(*arguments, cwd) -> str:
        done = subprocess.run([place / "venv/bin/uv", *arguments], cwd=cwd, **keywords)
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_every_script_starts_alone(uv, tmp_path, script):
    """Its first lines name all that it imports: nothing else is installed or in the folder."""
    shutil.copy(ROOT / script, tmp_path)
    assert "usage:" in uv("run", script.name, "--help", cwd=tmp_path)


def test_a_file_and_a_url_train(uv, tmp_path):
    shutil.copy(ROOT / "MNIST/optdigits.py", tmp_path)
    uv("run", "optdigits.py", *SHORT, cwd=tmp_path)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=ROOT)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for path in ("MNIST/optdigits.py", "Regression/synthetic_regression.py"):
            address = f"http://127.0.0.1:{server.server_port}/{path}"
            uv("run", address, *SHORT, "--overwrite", cwd=tmp_path)
        server.shutdown()
    logs = list((tmp_path / "results").rglob("*.jsonl"))
    assert {log.parent.name for log in logs} == {"optdigits", "synthetic_regression"}


def test_a_script_runs_in_a_notebook(uv, tmp_path):
    """In a real kernel, in the user's folder; the second cell reads the logs."""
    shutil.copy(ROOT / "MNIST/optdigits.py", tmp_path)
    (tmp_path / "cells.json").write_text(json.dumps(CELLS))
    (tmp_path / "play.py").write_text(PLAY)
    packages = [f"--with={name}" for name in PACKAGES.split()]
    said = uv("run", "--no-project", *packages, "play.py", cwd=tmp_path)
    assert "cnn-fc-published-e20-s0: " in said and "SystemExit" not in said
    accuracies = dict(re.findall(r"(\w+) +(\d\d\.\d\d) %", said))
    assert {"fc", "spinal"} <= set(accuracies)
    assert all(float(value) > 50 for value in accuracies.values())
