"""Which classes the best runs confuse: python tools/confusion.py --data-dir data

For MNIST and Fashion-MNIST, small CNN, published protocol: takes the committed run with the highest accuracy of each head, runs
it again with its own script (a minute each; the accuracy must come out as logged, or nothing is written), and counts true
against predicted classes on the test set. Writes results/confusion/<script>.json, from which `make tables` draws the figure.
Exit status: 0 done, 1 a run did not come out as logged, 2 a user's mistake.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("mnist", "fashion_mnist")


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"MNIST/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def best_logs(name: str) -> list[tuple[dict, dict]]:
    """First and last line of the best published run of each head."""
    best: dict[str, tuple[dict, dict]] = {}
    for path in sorted((ROOT / "results/logs" / name).glob("cnn-*-published-s*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        start, end = json.loads(lines[0]), json.loads(lines[-1])
        label = path.name.split("-")[1]
        if label not in best or end["selected_test_accuracy_pct"] > best[label][1]["selected_test_accuracy_pct"]:
            best[label] = start, end
    return [best[label] for label in sorted(best)]


@torch.no_grad()
def count(script, run) -> list[list[int]]:
    """(classes, classes): how often class i (row) was taken for class j (column), test set, last epoch."""
    split, classes = run.data.test, script.CLASSES["published"]
    matrix = torch.zeros(classes * classes, dtype=torch.int64)
    run.network.eval()
    for images, labels in zip(split.images.split(1_000), split.labels.split(1_000)):
        with script.autocast(labels.device, run.options.precision):
            predicted = run.network(script.normalise(images, run.data)).argmax(1)
        matrix += torch.bincount(labels * classes + predicted, minlength=classes * classes)
    return matrix.view(classes, classes).tolist()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    options = parser.parse_args(argv)
    for name in SCRIPTS:
        script, found = load_script(name), []
        for start, end in best_logs(name):
            settings = start["settings"]
            sizes = ["--layers", str(settings["layers"]), "--width", str(settings["width"])] if settings["head"] == "spinal" else []
            with tempfile.TemporaryDirectory() as folder:
                arguments = script.parse_arguments(["--head", settings["head"], *sizes, "--seed", str(start["seed"]), "--precision",
                                                    settings["precision"], "--data-dir", str(options.data_dir), "--no-download",
                                                    "--results-dir", folder, "--device", "cpu", "--quiet"])
                torch.set_num_threads(start["provenance"]["threads"])
                try:
                    data = script.load_data(arguments, torch.device("cpu"))
                except script.UserError as error:
                    print(f"error: {error}", file=sys.stderr)
                    return 2
                run = script.Run(settings["head"], start["seed"], data, arguments, script.Team(arguments))
                script.train_together([run], arguments)
            matrix = count(script, run)
            right = 100 * sum(matrix[k][k] for k in range(len(matrix))) / sum(map(sum, matrix))
            if abs(right - end["last_test_accuracy_pct"]) > 1e-6:
                print(f"error: {start['run']} gives {right:.2f} % here, its log says {end['last_test_accuracy_pct']} %", file=sys.stderr)
                return 1
            found.append({"run": start["run"], "head": settings["head"], "layers": settings["layers"], "width": settings["width"],
                          "accuracy_pct": end["last_test_accuracy_pct"], "matrix": matrix})
            print(f"{name}: {start['run']} {right:.2f} %", flush=True)
        path = ROOT / "results/confusion" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"dataset": script.DATASET, "runs": found}) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
