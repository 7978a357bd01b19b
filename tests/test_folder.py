"""tl_folder.py: a folder of one's own is trained on, resumed, classified with, or refused."""

import json
import re

import numpy
import pytest
import torch
from PIL import Image

from conftest import load_script, one_error
from made_up_data import folders, pixels, save

FOLDER = load_script("Transfer_Learning/tl_folder")
SHORT = "--weights none --image-size 32 --epochs 2 --batch-size 8 --lr 0.02 --save-weights"
SHORT += " --no-download --workers 0 --device cpu --quiet"


def status_of(results, *flags):
    """Exit status of the script in this process."""
    try:
        return FOLDER.main([*SHORT.split(), "--results-dir", *map(str, (results, *flags))])
    except SystemExit as end:
        return end.code


def fails(capsys, results, *flags):
    """The only sentence about a mistake, after which nothing is left behind."""
    assert status_of(results, *flags) == 2 and not list(results.rglob("*.*"))
    return one_error(capsys.readouterr().err)


def colours(folder, per_class=12):
    """Two classes that a network can tell by their colour."""
    for number, name in enumerate(("blaue Würfel", "red")):
        for k in range(per_class):
            image = pixels(number, k) // 4
            image[..., 2 - 2 * number] += 180
            save(folder / name / f"image {k}.png", image)
    return folder


def test_a_folder_without_parts_is_learnt_and_classified(tmp_path, capsys):
    images, results = colours(tmp_path / "meine Bilder"), tmp_path / "results"
    flags = ("--images", images, "--epochs", "3")
    assert status_of(results, *flags) == 0
    assert re.search(r"Spinal - FC: [+-]\d+\.\d\d points", capsys.readouterr().out)
    logs = sorted(results.rglob("*.jsonl"))
    for log, head, shape in zip(logs, ("fc", "spinal"), ((0, 0), (4, 20)), strict=True):
        start = json.loads(log.read_text().partition("\n")[0])
        settings, counts = start["settings"], start["data"]
        assert settings["class_names"] == ["blaue Würfel", "red"] and settings["head"] == head
        assert (settings["layers"], settings["width"]) == shape and "-corrected-" in log.name
        assert [counts[name] for name in ("train", "heldout", "test")] == [17, 2, 5]
    assert status_of(results, *flags) == 0
    assert capsys.readouterr().out.count("already finished") == 2
    classify = ("--classify", images / "red/image 3.png")
    assert status_of(results, *classify) == 0
    shown = capsys.readouterr().out.splitlines()
    for line, log in zip(shown, logs, strict=True):
        assert re.fullmatch(f"{log.stem}: red \\d\\d.\\d\\d %, blaue Würfel \\d+.\\d\\d %", line)
    next(results.rglob("weights/*/*.pt")).write_bytes(b"")
    assert status_of(results, *classify) == 2
    assert "cannot be used" in one_error(capsys.readouterr().err)


def stop(run):
    raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    flags = ("--images", colours(tmp_path / "images"), "--head", "spinal", "--width", "6")
    flags += ("--network", "shufflenet_v2_x0_5")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert status_of(whole, *flags) == 0
    with monkeypatch.context() as patch:
        patch.setattr(FOLDER.Run, "finish", stop)
        assert status_of(cut, *flags) == 130
    assert status_of(cut, *flags) == 0
    files = [next(results.rglob("weights/*/*.pt")) for results in (whole, cut)]
    one, other = [torch.load(file, weights_only=True) for file in files]
    assert files[0].name == files[1].name and "spinal4x6" in files[0].name
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_taken_has_every_class_and_no_image_twice():
    labels = numpy.repeat([0, 1, 2], [5, 11, 40])
    files = numpy.array([f"{k}.png" for k in range(len(labels))])
    whole, again = [FOLDER.split({"train": (files, labels)}, FOLDER.FC) for _ in range(2)]
    assert sorted(numpy.concatenate([part[0] for part in whole.values()])) == sorted(files)
    assert numpy.bincount(whole["test"][1]).tolist() in ([1, 2, 8], [1, 3, 8])
    assert set(whole["train"][1]) == {0, 1, 2} and (again["test"][0] == whole["test"][0]).all()


def test_parts_of_the_user_are_taken_as_they_are(tmp_path):
    folders("train", "test", "val", classes=2, per_class=5)(tmp_path)
    parts, _ = FOLDER.read_parts(tmp_path, False)
    assert list(parts) == ["train", "test", "heldout"]
    for (files, labels), name in zip(parts.values(), ("train", "test", "val"), strict=True):
        assert labels.tolist() == [0] * 5 + [1] * 5 and f"/{name}/class000/" in files[0]


def write(folder, kind):
    """A folder of images that is refused."""
    folder.mkdir()
    if kind == "no classes":
        save(folder / "1.png", pixels(0, 0))
    elif kind == "differing":
        folders("train", classes=3, per_class=5)(folder)
        folders("val", classes=2, per_class=5)(folder)
    elif kind == "deep":
        folders("Training", "Validation", classes=2, per_class=5)(folder)
    elif kind != "empty":
        colours(folder, per_class=4 if kind == "few" else 5)
    if kind == "16 bits":
        Image.fromarray(numpy.full((9, 9), 40_000, "u2")).save(folder / "red" / "image 3.png")


REFUSED = {
    "empty": "class folder",
    "no classes": "class folder",
    "differing": "class002",
    "deep": "below the folders of its classes",
    "few": "less than five images",
    "16 bits": "image 3.png cannot be used: it has more than 8 bits a channel",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_folders_that_do_not_fit_are_refused(kind, tmp_path, capsys):
    write(tmp_path / "images", kind)
    assert REFUSED[kind] in fails(capsys, tmp_path / "results", "--images", tmp_path / "images")


def test_other_mistakes_are_refused(tmp_path, capsys):
    images, results = colours(tmp_path / "images", 1), tmp_path / "results"
    for network in ("resnet17", "vit_b_16", "squeezenet1_0", "deeplabv3_resnet50"):
        message = fails(capsys, results, "--images", images, "--network", network)
        assert network in message and "`fc` or `classifier`" in message
    assert "--images FOLDER" in fails(capsys, results)
    assert "--save-weights" in fails(capsys, results, "--classify", images / "red/image 0.png")


def test_heads_fit_networks_of_many_kinds():
    for name in ("resnet18", "convnext_tiny", "efficientnet_b0", "vgg11"):
        fc = FOLDER.replace(FOLDER.FC, network=name, classes=3, weights="none")
        for recipe in (fc, FOLDER.replace(fc, head="spinal", layers=4, width=20)):
            with torch.device("meta"), torch.no_grad():
                assert FOLDER.network_of(recipe, False)(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
