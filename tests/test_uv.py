"""Each script with `uv run` from nothing, as a file and from a URL, and README's notebook cell in a Jupyter kernel:
make test-all.

It needs a package index and some gigabytes, so it runs only when SPINALNET_UV=1 says so.
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading

import pytest

from conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("SPINALNET_UV") != "1", reason="wants a package index"),
]
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for folder in ("MNIST", "EMNIST", "CIFAR", "Regression", "Transfer_Learning")
    for path in (ROOT / folder).glob("*.py")
)
SHORT = "--epochs 1 --head spinal --quiet".split()
CELLS = re.search(
    r"<!-- notebook -->\n(.*?)\n<!-- end -->", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
)[1]


@pytest.fixture(scope="module")
def uv(tmp_path_factory):
    """Runs uv, installed in a folder of its own, with the cache that uv always has; returns the finished process."""
    place = tmp_path_factory.mktemp("uv")
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    subprocess.run([place / "venv/bin/pip", "install", "-q", "uv"], check=True, capture_output=True)
    hidden = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {
        "UV_LINK_MODE": "hardlink"
    }

    def run(*arguments, **keywords):
        return subprocess.run(
            [place / "venv/bin/uv", *arguments],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=1200,
            **keywords,
        )

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_every_script_starts_alone(uv, tmp_path, script):
    """Its first lines name all that it imports: nothing else is installed, nothing else is in the folder."""
    shutil.copy(ROOT / script, tmp_path)
    done = uv("run", script.name, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stdout


def test_a_file_trains(uv, tmp_path):
    shutil.copy(ROOT / "MNIST/optdigits.py", tmp_path)
    done = uv("run", "optdigits.py", *SHORT, cwd=tmp_path)
    assert done.returncode == 0 and len(list(tmp_path.rglob("*.jsonl"))) == 1, done.stdout


def test_a_url_trains(uv, tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=ROOT)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for path in ("MNIST/optdigits.py", "Regression/synthetic_regression.py"):
            done = uv("run", f"http://127.0.0.1:{server.server_port}/{path}", *SHORT, "--epochs", "2", cwd=tmp_path)
            assert done.returncode == 0, done.stdout
        server.shutdown()
    logs = list((tmp_path / "results").rglob("*.jsonl"))
    assert {log.parent.name for log in logs} == {"optdigits", "synthetic_regression"}, "where the user is"


def test_the_cells_of_the_readme_run_in_a_notebook(uv, tmp_path):
    """In a real kernel, in the user's folder; the second cell shows the results as a table."""
    cells = [textwrap.dedent(cell) for cell in re.findall(r"```python\n(.*?)```", CELLS, re.DOTALL)]
    assert len(cells) == 2
    shutil.copy(ROOT / "MNIST/optdigits.py", tmp_path)
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    (tmp_path / "play.py").write_text(
        textwrap.dedent("""
        import json, nbformat, nbclient
        cells = [nbformat.v4.new_code_cell(cell) for cell in json.load(open("cells.json"))]
        book = nbformat.v4.new_notebook(cells=cells)
        nbclient.NotebookClient(book, timeout=600, kernel_name="python3").execute()
        for cell in book.cells:
            for output in cell.outputs:
                print(output.output_type, output.get("text") or output.get("data", {}).get("text/plain"))
    """)
    )
    done = uv(
        "run",
        "--no-project",
        *(
            f"--with={name}"
            for name in "nbclient nbformat ipykernel torch torchvision numpy tqdm scikit-learn pip".split()
        ),
        "play.py",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert "optical digits cnn-fc-published-e20-s0: " in done.stdout and "SystemExit" not in done.stdout
    accuracies = re.findall(r"(\w+) +(\d\d\.\d\d) %", done.stdout)
    assert {"fc", "spinal"} <= {head for head, _ in accuracies} and all(float(value) > 50 for _, value in accuracies)
