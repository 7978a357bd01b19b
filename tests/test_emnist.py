"""The scripts of EMNIST/: what differs from MNIST's, which is facts, labels and the split. All of it runs offline.

Settings are in test_settings.py, what all image scripts share in test_image_scripts.py, downloads in test_downloads.py.
"""

import difflib
import json
import re
from pathlib import Path

import pytest
import torch
from torchvision.datasets import EMNIST

from conftest import ROOT, load_script
from image_data import files_of, pictures, write_data

SPLITS = {"digits": 10, "letters": 26, "balanced": 47}
OUTPUTS = [  # split, protocol, outputs, label that becomes class 0
    ("digits", "published", 10, 0), ("digits", "corrected", 10, 0), ("letters", "published", 62, 0),
    ("letters", "corrected", 26, 1), ("balanced", "published", 62, 0), ("balanced", "corrected", 47, 0),
]  # fmt: skip
CPU = torch.device("cpu")


def script_of(split: str) -> str:
    return f"EMNIST/emnist_{split}"


def loaded(split: str, folder: Path, *flags: str):
    module = load_script(script_of(split))
    options, recipe = module.parse_arguments(["--data-dir", str(folder), "--no-download", *flags])
    return module.load_data(options, recipe, CPU), recipe


def main(split: str, folder: Path, results: Path, *flags: str) -> int:
    where = ["--data-dir", str(folder), "--no-download", "--results-dir", str(results), "--device", "cpu", "--quiet"]
    return load_script(script_of(split)).main([*where, *flags])


@pytest.mark.parametrize("split", SPLITS)
def test_scripts_differ_from_mnist_in_words_and_facts_only(split):
    """Below the facts each line is MNIST's."""
    mine, mnist = ((ROOT / f"{name}.py").read_text() for name in (script_of(split), "MNIST/mnist"))
    data = "# >>> shared: data"
    assert mine[mine.index(data) :] == mnist[mnist.index(data) :]
    changed = [
        line[2:] for line in difflib.ndiff(mnist.splitlines(), mine[: mine.index(data)].splitlines()) if line[0] == "+"
    ]
    assert len(changed) < 45


@pytest.mark.parametrize("split, protocol, outputs, first", OUTPUTS)
def test_labels_are_as_delivered_or_start_at_0_and_pixels_are_never_turned(tmp_path, split, protocol, outputs, first):
    """EMNIST's images come transposed, for training and test alike; torchvision delivers them so, and so do we."""
    write_data(tmp_path, script_of(split), train=132, test=60)
    data, recipe = loaded(split, tmp_path, "--protocol", protocol)
    train, labels, test, test_labels = pictures(script_of(split), train=132, test=60)
    for part, images, truth in ((True, train, labels), (False, test, test_labels)):
        delivered = EMNIST(tmp_path, split=split, train=part)
        assert torch.equal(delivered.data, images) and torch.equal(delivered.targets, truth)
    assert torch.equal(data.test[0][:, 0], test) and torch.equal(data.test[1], test_labels - first)
    assert recipe["classes"] == outputs and recipe["first_label"] == first
    lowest = 1 if split == "letters" and protocol == "published" else 0
    assert data.test[1].unique().tolist() == list(range(lowest, lowest + SPLITS[split]))
    if protocol == "published":
        assert torch.equal(data.train[0][:, 0], train) and torch.equal(data.train[1], labels)
        assert (recipe["mean"], recipe["std"]) == ([0.1307], [0.3081])
    assert int(data.train[1].max()) < outputs and data.train[1].dtype == torch.int64


@pytest.mark.parametrize("split, protocol, outputs, first", OUTPUTS)
def test_files_in_the_real_format_are_trained_on_and_labelled_for_what_they_are(
    tmp_path, split, protocol, outputs, first
):
    write_data(tmp_path, script_of(split))
    assert main(split, tmp_path, tmp_path / "results", "--epochs", "1", "--protocol", protocol) == 0
    paths = sorted((tmp_path / "results/logs" / f"emnist_{split}").iterdir())
    for path, head in zip(paths, ("fc", "spinal"), strict=True):
        start = json.loads(path.read_text().splitlines()[0])
        assert f"-data{start['data']['sha256'][:8]}-" in path.name and start["data"]["official"] is False
        assert start["settings"]["head"] == head and start["settings"]["classes"] == outputs
        assert start["settings"]["dataset"] == f"EMNIST ({split.capitalize()})"
        weights = 51 if head == "fc" else 49  # of each output, with its bias
        trunk = 260 + 5_020 + (321 * 50 if head == "fc" else 161 * 8 + 5 * 169 * 8)
        assert start["parameters"] == trunk + weights * outputs


@pytest.mark.parametrize("split", SPLITS)
def test_another_split_beside_it_is_no_help(tmp_path, capsys, split):
    for other in SPLITS:
        if other != split:
            write_data(tmp_path, script_of(other))
    assert main(split, tmp_path, tmp_path / "results") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: EMNIST ({split.capitalize()}) cannot be had in {tmp_path}")
    assert not (tmp_path / "results").exists()


def test_a_label_0_is_damage_where_labels_are_shifted(tmp_path, capsys):
    """A letter 0 does not exist; moved by one it would be class -1."""
    script = script_of("letters")
    write_data(tmp_path, script)
    labels = tmp_path / files_of(script)[3]
    labels.write_bytes(labels.read_bytes()[:-1] + b"\0")
    assert main("letters", tmp_path, tmp_path / "results", "--protocol", "corrected", "--epochs", "1") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and str(tmp_path) in error and not (tmp_path / "results").exists()


@pytest.mark.parametrize("split", SPLITS)
def test_the_docstring_says_how_many_images_are_held_out_and_what_the_outputs_are(split):
    text = load_script(script_of(split)).__doc__
    heldout = {"digits": 20_000, "letters": 10_400, "balanced": 9_400}[split]  # a twelfth
    assert f"{heldout:,} held-out" in text and "transposed" in text
    if split != "digits":
        (line,) = [line for line in text.splitlines() if line.strip().startswith("outputs (")]
        assert "E-Q4" in line and re.search(rf"\b{SPLITS[split]}\b.*published: 62", line)


# ---- Real data -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split, counts, mean, std", [
    ("letters", (42_900, 7_150), 0.1721, 0.3308), ("digits", (30_000, 5_000), 0.1734, 0.3318),
])  # fmt: skip
def test_the_real_subset_is_read_and_not_taken_for_the_official_set(real_subset, split, counts, mean, std):
    published, _ = loaded(split, real_subset)
    corrected, recipe = loaded(split, real_subset, "--protocol", "corrected")
    assert (published.facts["train"], published.facts["test"]) == counts and published.facts["official"] is False
    first = int(split == "letters")
    assert published.test[1].unique().tolist() == list(range(first, first + SPLITS[split]))
    assert corrected.test[1].unique().tolist() == list(range(SPLITS[split]))
    assert recipe["mean"] == [pytest.approx(mean, abs=2e-3)] and recipe["std"] == [pytest.approx(std, abs=2e-3)]
    assert corrected.facts["heldout"] == counts[0] // 12


def test_cnn_learns_real_digits(real_subset, tmp_path):
    flags = ["--limit", "3000", "--epochs", "3", "--head", "spinal"]
    assert main("digits", real_subset, tmp_path, *flags) == 0
    (path,) = (tmp_path / "logs/emnist_digits").glob("*.jsonl")
    assert json.loads(path.read_text().splitlines()[-1])["selected_test_accuracy_pct"] > 50
