"""Make results/paper.csv, the paper's numbers in the form that tools/report reads.

    python tools/make_paper_csv.py PATH/TO/results.csv [--output results/paper.csv]

The input is the collection of every number found for the paper (arXiv 2007.03347), one number a
row, with its source. Kept are the paper's own Tables I, II and III, among them the rows that arXiv
v2 prints and v3 dropped, whose labels become the keys of our scripts and logs; and after them, for
the ledger of claims, Table IV, numbers of the text and those that the authors' repository and
notebooks print, with labels as they are. Numbers are copied as text, so nothing is rounded or
retyped. The output is committed: this program is needed again only when the collection changes.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from pathlib import Path

TABLES = ("I", "II", "II (v2 only)", "III")  # rows of ours
OTHERS = ("IV", "claim", "text", "text (v2 only)", "notebook", "repo only")
COLUMNS = (
    "table",
    "dataset",
    "script",
    "network",
    "head",
    "layers",
    "width",
    "function",
    "metric",
    "value",
    "epochs",
    "source",
    "note",
)
SCRIPTS = {
    "MNIST": "mnist",
    "Fashion-MNIST": "fashion_mnist",
    "Kuzushiji-MNIST": "kmnist",
    "QMNIST": "qmnist",
    "EMNIST (Digits)": "emnist_digits",
    "EMNIST (Letters)": "emnist_letters",
    "EMNIST (Balanced)": "emnist_balanced",
    "CIFAR-10": "cifar10",
    "CIFAR-100": "cifar100",
}
TRANSFER_SCRIPTS = {
    "CIFAR-10": "tl_cifar10",
    "CIFAR-100": "tl_cifar100",
    "Caltech-101": "tl_caltech101",
    "Bird225": "tl_bird225",
    "Stanford Cars": "tl_stanford_cars",
    "SVHN": "tl_svhn",
    "CINIC-10": "tl_cinic10",
    "STL-10": "tl_stl10",
    "Oxford 102 Flower": "tl_oxford_flowers102",
    "Fruits 360": "tl_fruits360",
}
FUNCTIONS = {
    "8 inputs, y=sum(x) + noise": "sum",
    "8 inputs, y=sin(sum(x)) + noise": "sinsum",
    "8 inputs, y=prod(x) + noise": "product",
    "8 inputs, y=sin(prod(x)) + noise": "sinproduct",
}


def script_of(table: str, dataset: str) -> str:
    """Name of our script for a data set; Table III starts from ImageNet weights, by tl_ scripts."""
    if table == "I":
        return "synthetic_regression"
    return (TRANSFER_SCRIPTS if table == "III" else SCRIPTS)[dataset]


def network_of(table: str, model: str) -> str:
    """`VGG-19_bn` is `vgg19_bn`; both networks of Table I are our `mlp`, told apart by the head.

    The CNN that only version 2 prints for CIFAR-10 is that of PyTorch's tutorial, our `lenet`.
    """
    if (table, model) == ("II (v2 only)", "CNN"):
        return "lenet"
    return "mlp" if table == "I" else model.lower().replace("-", "")


def head_of(label: str) -> tuple[str, str, str]:
    """Head, layers and width of a printed label; no width where the label prints two."""
    head = "spinal" if label.startswith("Spinal") else "fc"
    sizes = re.search(r"\((\d+)HL x ([^)]*)\)", label)
    if sizes is None:
        return head, "", ""
    return head, sizes[1], sizes[2] if sizes[2].isdigit() else ""


def source_of(text: str) -> str:
    """`arXiv v3 LaTeX`, or the file of the authors' repository."""
    version = re.search(r"arXiv v\d LaTeX", text)
    if version is None:
        return text
    return version[0] + ("; image of Table I" if "Spinal_Regression.png" in text else "")


def is_kept(row: dict[str, str]) -> bool:
    """The paper's own numbers, and those of the authors' repository; no copies, no other papers."""
    own = row["confidence"] == "paper" and row["table"] in (*TABLES, *OTHERS)
    return own or (row["confidence"] == "repo" and row["table"] in OTHERS)


def convert(row: dict[str, str]) -> dict[str, str]:
    """One row of the collection as one row of paper.csv."""
    table, dataset = row["table"], row["dataset"]
    ours = table in TABLES
    head, layers, width = head_of(row["head"])
    return {
        "table": table,
        "dataset": dataset,
        "script": script_of(table, dataset) if ours else "",
        "network": network_of(table, row["model"]) if ours else row["model"],
        "head": head,
        "layers": layers,
        "width": width,
        "function": FUNCTIONS[dataset] if table == "I" else "",
        "metric": row["metric"],
        "value": row["value"],
        "epochs": row["epochs"],
        "source": source_of(row["source"]),
        "note": row["note"],
    }


def main(argv: list[str] | None = None) -> int:
    """Read the collection, write paper.csv, return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "collection", type=Path, metavar="results.csv", help="the collection of the paper's numbers"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/paper.csv"), help="default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    try:
        with arguments.collection.open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if is_kept(row)]
        converted = [convert(row) for row in rows]
    except (OSError, KeyError, ValueError) as error:
        print(
            f"error: {arguments.collection} is not the collection of paper numbers: {error!r}",
            file=sys.stderr,
        )
        return 2
    order = (*TABLES, *OTHERS)
    converted = [row for table in order for row in converted if row["table"] == table]
    with arguments.output.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(converted)
    print(f"{len(converted)} numbers written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
