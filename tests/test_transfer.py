"""The scripts of Transfer_Learning/: counts, what learns, loaders, views, stages, resume, processes. Offline."""

import copy
import csv
import functools
import json
import os
import subprocess
import sys
import urllib.error

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms

from conftest import ROOT, load_script
from transfer_data import SIZES, WRITERS, pixels, without_checksums

sys.path[:0] = [str(ROOT / "tools")]
import scale_images  # noqa: E402  (tools/ and results/ are no packages)
from report.logs import read_log  # noqa: E402

NAMES = sorted(path.stem for path in (ROOT / "Transfer_Learning").glob("*.py"))
SCRIPTS = {name: load_script(f"Transfer_Learning/{name}") for name in NAMES}
WRN, VGG = "wide_resnet101_2", "vgg19_bn"
TABLE_III = [name for name, module in SCRIPTS.items() if module.RECIPES.get(VGG, {}).get("head_ignored")]
THREE_PARTS = {name for name, sizes in SIZES.items() if sizes[1]}
TRUNKS = {WRN: 124_837_696, VGG: 20_035_392, "resnet18": 11_176_512, "resnext50_32x4d": 22_979_904,
          "alexnet": 2_469_696}
get_model = torchvision.models.get_model
VGG_WHOLE = 143_678_248  # spec transfer.md 1, Q1


def test_there_is_a_script_for_each_set_and_each_is_short():
    assert set(SCRIPTS) == set(WRITERS) and len(SCRIPTS) == 15 and len(TABLE_III) == 10
    assert set(TABLE_III) == {row["script"] for row in paper_rows()}
    for name in NAMES:
        lines = (ROOT / f"Transfer_Learning/{name}.py").read_text().splitlines()
        assert len(lines) <= 460 and max(map(len, lines)) <= 120, name


# ---- Counts ----------------------------------------------------------------------------------------------------------
@functools.cache
def trunk_on_meta(network):
    return get_model(network, weights=None)


def on_meta(script, network, head, **options):
    """Without numbers; a trunk is copied, which takes less time than building it."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "get_model", lambda name, weights: copy.deepcopy(trunk_on_meta(name)))
        return SCRIPTS[script].build_network(network, head, pretrained=False, **options)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def multiplications(network):
    """As `run` counts them: of the linear layers where the outputs are computed."""
    live = getattr(network, network.place)
    return sum(module.weight.numel() for module in live.modules() if isinstance(module, nn.Linear))


HEADS = [  # spec transfer.md 2 and 3.1: script, network, options (None: FC), parameters and multiplications of the head
    ("tl_bird225", WRN, {"width": 1024, "flavour": "DBR"}, 8_274_145, 8_261_632),
    ("tl_cifar100", WRN, {}, 3_094_628, 3_088_384),
    ("tl_cinic10", WRN, {}, 84_010, 83_920),
    ("tl_cifar10", WRN, {}, 84_010, 83_920),
    ("tl_svhn", WRN, {}, 84_010, 83_920),
    ("tl_caltech101", WRN, None, 206_949, 206_848),
    ("tl_caltech101", WRN, {}, 485_608, None),
    ("tl_caltech101", WRN, {"width": 1024}, 7_757_925, None),
    ("tl_fruits360", WRN, {}, 657_358, 656_703),
    ("tl_fruits360", WRN, {"flavour": "DBR"}, 658_406, None),
    ("tl_oxford_flowers102", WRN, {"width": 102}, 491_130, 490_620),
    ("tl_oxford_flowers102", WRN, None, 208_998, None),
    ("tl_stl10", WRN, {"width": 512}, 2_910_218, 2_904_064),
    ("tl_stanford_cars", WRN, {}, 1_072_708, 1_071_728),
    ("tl_fashion_mnist", WRN, {}, 7_385_098, None),
    ("tl_cifar100", WRN, {"width": 200, "flavour": "R"}, 1_020_100, 1_019_200),
    ("tl_oxford_flowers102", "resnext50_32x4d", None, 480_726, 480_216),
    ("tl_monkey10", "alexnet", {}, 370_730, None),
    ("tl_mnist", VGG, {}, 54_579_210, 54_566_912),
    ("tl_mnist", VGG, {"flavour": "LIN"}, 54_571_018, None),
    ("tl_mnist", VGG, None, 119_586_826, 119_578_624),
    ("tl_hymenoptera", "resnet18", {}, 7_897, 7_865),
]


@pytest.mark.parametrize("script, network, options, parameters, multiplied", HEADS)
def test_counts_of_heads_equal_the_specification(script, network, options, parameters, multiplied):
    built = on_meta(script, network, "fc" if options is None else "spinal", **(options or {}))
    assert count(built) == TRUNKS[network] + parameters
    assert multiplied in (None, multiplications(built))


@pytest.mark.parametrize("script", ["tl_cifar10", "tl_svhn"])
def test_released_vgg_scripts_have_a_dead_head_beside_the_whole_vgg(script):
    network = on_meta(script, VGG, "spinal", width=20)
    assert count(network) == VGG_WHOLE + 1_005_770
    assert multiplications(network) == 25_088 * 4_096 + 4_096 * 4_096 + 4_096 * 1_000
    assert count(on_meta(script, VGG, "spinal", width=20, protocol="corrected")) == TRUNKS[VGG] + 1_005_770


def paper_rows():
    with open(ROOT / "results/paper.csv", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["script"].startswith("tl_")]


FITS = {  # printed counts that do not fit the printed label (paper/README.md), and what they fit
    ("tl_cifar100", WRN): {"width": 1024, "flavour": "R"},
    ("tl_caltech101", WRN): {"width": 1024},
    ("tl_stanford_cars", WRN): {"width": 1024},
    ("tl_stanford_cars", VGG): {"width": 196},
}


def test_the_40_printed_counts_fit_the_published_networks():
    rows = [row for row in paper_rows() if row["metric"] == "parameters_printed"]
    assert len(rows) == 40
    for row in rows:
        script, network, head = row["script"], row["network"], row["head"]
        shape, printed = FITS.get((script, network), {}) if head == "spinal" else {}, float(row["value"][:-1])
        counted = count(on_meta(script, network, head, **shape))
        if (script, network, head) == ("tl_caltech101", WRN, "fc"):
            counted += 2_049  # the printed number fits one class more, the background
        assert counted / 1e6 == pytest.approx(printed, abs=0.00501), row
        if network == VGG:  # with the head in its place the printed count does not come out
            assert abs(count(on_meta(script, network, head, **shape, protocol="corrected")) / 1e6 - printed) > 40


def test_numbers_and_epochs_of_the_paper_stand_in_the_scripts():
    for row in paper_rows():
        module, head = SCRIPTS[row["script"]], row["head"]
        recipe = module.recipe_of(row["network"], "published")
        assert recipe["epochs"] == int(row["epochs"])
        layers, width = int(row["layers"] or 0), int(row["width"] or 0)
        assert recipe[head][:2] == (layers, width)
        fc = f"FC {width}, {width}" if layers else "FC output only"
        title = f"Spinal {layers} x {width}" if head == "spinal" else fc
        (line,) = [x for x in module.__doc__.splitlines() if row["network"] in x and f" {title} " in x and x[0] == "|"]
        if row["metric"].startswith("accuracy"):
            assert f" {float(row['value']):.2f} |" in line


# ---- What learns -----------------------------------------------------------------------------------------------------
def learning(network):
    """Names of the parameters that get a gradient."""
    network(torch.zeros(2, 3, 64, 64, device=next(network.parameters()).device)).sum().backward()
    return {name for name, parameter in network.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("head", ["fc", "spinal"])
@pytest.mark.parametrize("script", [*TABLE_III, "tl_mnist"])
def test_which_parameters_of_vgg_learn(script, head):
    """Q1, on tensors without numbers: a parameter outside of the graph has no gradient."""
    ignored, classes = script in TABLE_III, SCRIPTS[script].COMMON["classes"]
    for protocol in ("published", "corrected"):
        network = on_meta(script, VGG, head, protocol=protocol)
        dead = {name for name, _ in network.named_parameters() if name.startswith("fc.")}
        assert bool(dead) == (ignored and protocol == "published")
        if script not in ("tl_cifar10", "tl_mnist"):  # the others are built by the same text
            continue
        assert learning(network) == {name for name, _ in network.named_parameters()} - dead
        assert network(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 1000 if dead else classes)


def test_leaky_head_uses_layers_three_and_four_again():
    head = SCRIPTS["tl_hymenoptera"].build_network("resnet18", "spinal", pretrained=False).fc
    x, layers = torch.randn(3, 512), head[0].hidden
    outputs = [layers[0](x[:, :256])]
    for k, layer in enumerate((1, 2, 3, 2, 3), 1):
        outputs.append(layers[layer](torch.cat([x[:, 256:] if k % 2 else x[:, :256], outputs[-1]], 1)))
    assert torch.equal(head(x), head[1:](torch.cat(outputs, 1)))
    assert layers[0][-1](torch.tensor(-1.0)) == pytest.approx(-0.01)
    head(x).sum().backward()
    assert all(parameter.grad is None for parameter in head[0].unused.parameters()) and len(head[0].unused) == 2
    assert all(parameter.grad is not None for parameter in layers.parameters())


def test_fashion_head_is_affine_as_published_and_not_when_corrected():
    for protocol, affine in (("published", True), ("corrected", False)):
        network = SCRIPTS["tl_fashion_mnist"].build_network("resnet18", "spinal", protocol=protocol, pretrained=False)
        head, (x, y) = network.fc[0].double(), torch.randn(2, 4, 512, dtype=torch.float64)
        assert torch.allclose(head((x + y) / 2), (head(x) + head(y)) / 2, atol=1e-9) == affine


def test_dbr_and_fc_heads_are_as_specified():
    head = on_meta("tl_cifar100", WRN, "spinal").fc
    for layer in head[0].hidden:
        assert [type(part) for part in layer] == [nn.Dropout, nn.Linear, nn.BatchNorm1d, nn.ReLU] and layer[0].p == 0.5
    assert isinstance(head[1], nn.Dropout) and head[1].p == 0.5 and isinstance(head[2], nn.Linear)
    fc, kinds = on_meta("tl_mnist", VGG, "fc").classifier, [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    assert all(map(isinstance, fc, kinds)) and len(fc) == 7 and fc[2].p == fc[5].p == 0.5


def test_logits_are_fp32_under_bf16():
    for script, network in (("tl_cifar10", "resnet18"), ("tl_monkey10", "alexnet")):
        built = SCRIPTS[script].build_network(network, "spinal", pretrained=False).eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert built(torch.zeros(1, 3, 64, 64)).dtype == torch.float32


# ---- Loaders and views -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """script -> folder with its tiny data set."""
    folders = {}

    def write(script):
        if script not in folders:
            folders[script] = tmp_path_factory.mktemp(script)
            WRITERS[script](folders[script])
        return folders[script]

    return write


@pytest.fixture(autouse=True)
def other_content_is_read(monkeypatch):
    for name in ("CIFAR10", "CIFAR100", "SVHN", "STL10", "Flowers102"):
        monkeypatch.setattr(torchvision.datasets, name, without_checksums(getattr(torchvision.datasets, name)))


def loaded(script, folder, *flags):
    module = SCRIPTS[script]
    options, recipe = module.parse_arguments(["--data-dir", str(folder), "--no-download", *flags])
    options.processes = 1
    return module.load_data(options, recipe)


@pytest.mark.parametrize("script", SCRIPTS)
def test_loader_reads_the_format_on_disk(script, written):
    data = loaded(script, written(script))
    parts = [data.train, data.heldout, data.test]
    assert tuple(len(part or ()) for part in parts) == SIZES[script]
    assert (data.heldout is None) == (script not in THREE_PARTS)
    for part in filter(None, parts):
        for image, label in zip(part.images, part.labels):
            if not isinstance(image, str):
                assert int(np.ravel(image[0, 0])[0]) == label
            elif image.endswith(".png"):
                assert Image.open(image).getpixel((0, 0))[0] == label
    assert set(data.train.labels.tolist()) == set(range(SCRIPTS[script].COMMON["classes"]))
    assert data.facts["official"] is False and len(data.facts["sha256"]) == 16


@pytest.mark.parametrize("script", SCRIPTS)
def test_views_are_the_published_transforms(script):
    """Equal to torchvision's on the same draws, of the published size, and a pure function of seed, epoch and image."""
    module, source = SCRIPTS[script], (90, 70, 3)
    if script in ("tl_cifar10", "tl_cifar100", "tl_svhn", "tl_cinic10", "tl_fruits360"):
        source = (32, 32, 3)  # sets of square images: a single number resizes the shorter side
    elif "mnist" in script:
        source = (28, 28)
    recipe = module.recipe_of(next(iter(module.RECIPES)), "published")
    images, size = np.stack([pixels(k, k, source) for k in range(2)]), recipe["image_size"]
    for steps in ("augmentation", "evaluation"):
        part = module.Views(images, np.array([0, 1]), steps, recipe)
        part.draws, state = (3, "view", 1), torch.get_rng_state()
        view, label = part[1]
        assert view.shape == (3, size, size) and view.dtype == torch.uint8 and label == 1
        assert torch.equal(state, torch.get_rng_state()), "the generator of the dropout is left alone"
        torch.manual_seed(module.seed_of(3, "view", 1, 1))
        by_hand = transforms.Compose([getattr(transforms, name)(*values) for name, *values in recipe[steps]])
        by_hand = by_hand(Image.fromarray(images[1]).convert("RGB"))
        assert torch.equal(view, transforms.functional.pil_to_tensor(by_hand))
        for draws in ((4, "view", 1), (3, "view", 2)):
            part.draws = draws
            assert torch.equal(view, part[1][0]) == (steps == "evaluation")
    small = module.Views(images, np.array([0, 1]), "augmentation", recipe | {"image_size": 32})
    assert small[0][0].shape == (3, 32, 32)


def test_held_out_images_are_not_trained_on(written):
    for script in ("tl_cifar10", "tl_hymenoptera", "tl_mnist"):
        data = loaded(script, written(script), "--protocol", "corrected")
        train, heldout = ({x.tobytes() if isinstance(x, np.ndarray) else x for x in part.images}
                          for part in (data.train, data.heldout))
        total = sum(SIZES[script][:2])
        assert len(data.train) + len(data.heldout) == total and len(data.heldout) == max(1, total // 10)
        assert not train & heldout and len(data.test) == SIZES[script][2]
        again = loaded(script, written(script), "--protocol", "corrected")
        assert (again.heldout.labels == data.heldout.labels).all() and again.facts == data.facts


def test_every_tenth_training_image_is_held_out_as_published(written):
    data, source = loaded("tl_mnist", written("tl_mnist")), torchvision.datasets.MNIST(written("tl_mnist"))
    assert np.array_equal(data.heldout.images, source.data[::10].numpy())
    assert data.train.labels.tolist() == [int(x) for k, x in enumerate(source.targets) if k % 10]


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    WRITERS["tl_hymenoptera"](tmp_path)
    victim, seen = tmp_path / "hymenoptera_data/val/class000/image_0001.jpg", set()
    for change in (lambda: None, lambda: victim.write_bytes(victim.read_bytes() + b"x"),
                   lambda: victim.rename(victim.with_name("b.jpg"))):
        change()
        seen.add(loaded("tl_hymenoptera", tmp_path).facts["sha256"])
    assert len(seen) == 3


def test_official_counts_make_official_folders_and_arrays_need_the_content(written, monkeypatch):
    monkeypatch.setattr(SCRIPTS["tl_hymenoptera"], "IMAGES", {"train": 18, "test": 18})
    assert loaded("tl_hymenoptera", written("tl_hymenoptera")).facts["official"] is True
    monkeypatch.setattr(SCRIPTS["tl_cifar10"], "IMAGES", {"train": 50, "test": 10})
    with pytest.raises(ValueError, match="not the official content"):
        loaded("tl_cifar10", written("tl_cifar10"))


# ---- Runs, of a network that is no more than the attributes of VGG or ResNet -----------------------------------------
class Tiny(nn.Module):
    """No batch norm, so that parts of a batch do not feel each other."""

    def __init__(self, network):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        if network in (VGG, "alexnet"):
            self.classifier = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 1000))
        else:
            self.fc = nn.Linear(32, 1000)

    def forward(self, x):
        return (self.classifier if hasattr(self, "classifier") else self.fc)(self.features(x))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(torchvision.models, "get_model", lambda network, weights: Tiny(network))


def flags(*extra):
    return ("--weights", "none", "--image-size", "32", "--limit", "12", "--epochs", "2", "--batch-size", "6",
            "--no-download", "--workers", "0", "--device", "cpu", "--quiet", *extra)


def run(script, folder, results, *extra):
    """Runs the script in this process; the lines of its newest log."""
    arguments = ["--data-dir", str(folder), "--results-dir", str(results), *flags(*extra)]
    assert SCRIPTS[script].main(arguments) == 0
    newest = max((results / "logs" / script).glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(line) for line in newest.read_text().splitlines()]


def untimed(lines):
    return [{key: x for key, x in line.items() if key not in ("seconds", "ended", "run")} for line in lines]


@pytest.mark.parametrize("script", SCRIPTS)
def test_short_run_gives_a_log_as_the_schema_says(script, written, tmp_path, tiny, capsys):
    for protocol in ("published", "corrected"):
        start, *epochs, end = run(script, written(script), tmp_path, "--protocol", protocol, "--head", "spinal",
                                  "--width", "8")
        watched = "heldout" if script in THREE_PARTS or protocol == "corrected" else "test"
        settings, values = start["settings"], [line[f"{watched}_accuracy_pct"] for line in epochs]
        assert settings["selection"] == ("heldout" if watched == "heldout" else "best_test")
        assert {"epochs", "batch_size", "limit", "weights", "image_size"} == set(start["departures"])
        assert start["schema"] == 2 and "-data" in start["run"] and settings["precision"] == "fp32"
        assert settings["mean"] == [0.485, 0.456, 0.406] or protocol == "published"
        assert end[f"best_{watched}_accuracy_pct"] == max(values) and end["epochs"] == len(values) == 2
        assert end["selected_epoch"] == end["best_epoch"] == 1 + values.index(max(values))
        assert watched == "heldout" or end["selected_test_accuracy_pct"] == max(values)
        assert watched == "heldout" or end["last_test_accuracy_pct"] == values[-1]
    for path in (tmp_path / "logs" / script).iterdir():
        assert path.suffix == ".jsonl" and read_log(path, path.name, script).seed == 0
    assert "paper" not in capsys.readouterr().out, "no number of the paper beside a run with other settings"


def test_result_stands_beside_the_papers(written, tmp_path, tiny, monkeypatch, capsys):
    module = SCRIPTS["tl_cifar10"]
    monkeypatch.setattr(module, "IMAGES", {"train": 50, "test": 10})
    monkeypatch.setattr(module, "FINGERPRINT", None)
    monkeypatch.setattr(module, "sweep", lambda *_: (1.0, 50.0))
    monkeypatch.setattr(module.torch, "save", lambda _, path: path.write_text(""))
    arguments = ["--data-dir", str(written("tl_cifar10")), "--results-dir", str(tmp_path), "--no-download", "--quiet"]
    assert module.main([*arguments, "--device", "cpu", "--runs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "fc-published-s0: 50.00 %; paper, average: 97.43; paper, best: 98.22. Log: " in lines[0]
    assert "spinal4x20-published-s1: 50.00 %; paper, average: 97.61; paper, best: 98.12. Log: " in lines[3]


def test_a_finished_run_is_not_run_again(written, tmp_path, tiny, capsys):
    first = run("tl_cifar10", written("tl_cifar10"), tmp_path, "--head", "fc")
    capsys.readouterr()
    assert run("tl_cifar10", written("tl_cifar10"), tmp_path, "--head", "fc") == first
    assert f"already finished {first[-1]['ended']} on " in capsys.readouterr().out
    assert run("tl_cifar10", written("tl_cifar10"), tmp_path, "--head", "fc", "--overwrite")[-1]["ended"]
    path = next((tmp_path / "logs/tl_cifar10").iterdir())
    path.write_text(path.read_text().replace(first[0]["provenance"]["script_sha256"], "0" * 16))
    assert "another text of this script" in fails(capsys, "tl_cifar10", "--data-dir", written("tl_cifar10"),
                                                  "--results-dir", tmp_path, *flags("--head", "fc"))


def test_published_vgg_rows_are_one_network(written, tmp_path, tiny, monkeypatch, capsys):
    """Q1: FC and Spinal head give the same numbers to the last digit, and it is said why; corrected they differ."""
    curves = {}
    monkeypatch.setitem(SCRIPTS["tl_cifar10"].RECIPES[VGG], "fc", (2, 32, 0.5))
    monkeypatch.setitem(SCRIPTS["tl_cifar10"].RECIPES[VGG], "spinal", (4, 8, "DBR"))
    for protocol in ("published", "corrected"):
        for head in ("fc", "spinal"):
            start, *epochs, _ = run("tl_cifar10", written("tl_cifar10"), tmp_path, "--network", VGG, "--head", head,
                                    "--lr", "0.05", "--protocol", protocol)
            assert start["settings"]["head_ignored"] == (protocol == "published")
            assert ("never called" in capsys.readouterr().out) == (protocol == "published")
            curves[protocol, head] = [line["train_loss"] for line in epochs]
    assert curves["published", "fc"] == curves["published", "spinal"]
    assert curves["corrected", "fc"] != curves["corrected", "spinal"]


def test_both_heads_see_the_same_views_and_start_from_the_same_trunk(written, tmp_path, tiny, monkeypatch):
    module, seen = SCRIPTS["tl_hymenoptera"], []

    def spy(model, part, options, recipe, order=None, optimizer=None):
        if order is not None:
            seen.append((torch.stack([part[int(k)][0] for k in order]), model.features[0].weight.detach().clone()))
        return 1.0, 50.0

    monkeypatch.setattr(module, "sweep", spy)
    run("tl_hymenoptera", written("tl_hymenoptera"), tmp_path)
    (views, trunk), (later, _), (views2, trunk2), (later2, _) = seen
    assert torch.equal(views, views2) and torch.equal(trunk, trunk2) and torch.equal(later, later2)
    assert not torch.equal(views, later), "another epoch"


def test_number_of_workers_changes_nothing(written, tmp_path, tiny):
    """With dropout, whose generator the loaders must not touch."""
    def log(name, *extra):
        return run("tl_stl10", written("tl_stl10"), tmp_path / name, "--head", "spinal", "--epochs", "1", *extra)

    logs = [untimed(log(workers, "--workers", workers)) for workers in ("0", "1", "2")]
    assert logs[0] == logs[1] == logs[2]
    assert log("seed", "--seed", "1")[1]["train_loss"] != logs[0][1]["train_loss"]


@pytest.mark.parametrize("protocol, stop", [("published", 1), ("published", 2), ("corrected", 3), ("published", 4)])
def test_interrupted_run_goes_on_to_the_same_log(written, tmp_path, tiny, monkeypatch, protocol, stop, capsys):
    """tl_fashion_mnist has two stages: of the four epochs the third begins the second one."""
    module, folder = SCRIPTS["tl_fashion_mnist"], written("tl_fashion_mnist")
    for recipe in (module.RECIPES[WRN], module.CORRECTED["all"]):
        monkeypatch.setitem(recipe, "spinal", (4, 8, "DBR"))
    more = ("--epochs", "4", "--head", "spinal", "--protocol", protocol, "--limit", "24")
    whole = run("tl_fashion_mnist", folder, tmp_path / "whole", *more)
    replace, saved = os.replace, []

    def interrupted(source, target):
        replace(source, target)
        saved.append(target)
        if len(saved) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "replace", interrupted)
    arguments = ["--data-dir", str(folder), "--results-dir", str(tmp_path / "parts"), *flags(*more)]
    assert module.main(arguments) == 130
    assert len(list((tmp_path / "parts/logs/tl_fashion_mnist").iterdir())) == 2, "log so far and checkpoint"
    torch.manual_seed(12345)
    parts = run("tl_fashion_mnist", folder, tmp_path / "parts", *more)
    assert f"goes on after epoch {stop}" in capsys.readouterr().err
    assert untimed(parts) == untimed(whole)


def test_freeze_trains_the_head_alone(written, tmp_path, tiny):
    folder, names = written("tl_cifar10"), {}
    for epochs in ("1", "2"):
        start = run("tl_cifar10", folder, tmp_path, "--freeze", "--head", "fc", "--save-weights", "--epochs", epochs,
                    "--lr", "1")[0]
        names[epochs] = torch.load(tmp_path / "weights/tl_cifar10" / f"{start['run']}.pt")
    assert "freeze" in start["departures"] and start["settings"]["freeze"]
    torch.manual_seed(SCRIPTS["tl_cifar10"].seed_of(0, "weights"))
    fresh = SCRIPTS["tl_cifar10"].build_network(WRN, "fc", pretrained=False).state_dict()
    for key, x in names["2"].items():
        assert torch.equal(x, fresh[key]) == key.startswith("features")


# ---- Stages and selection --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("script", SCRIPTS)
def test_rates_are_those_of_steplr_in_each_stage(script, written, tmp_path, tiny, monkeypatch):
    module = SCRIPTS[script]
    recipe = module.recipe_of(next(iter(module.RECIPES)), "published")
    expected, begin = [], 0
    for factor, end in recipe["stages"]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], recipe["learning_rate"] * factor)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1)
        for _ in range(begin, round(end * recipe["epochs"])):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        begin = round(end * recipe["epochs"])
    used, fresh = [], []

    def spy(model, part, options, recipe, order=None, optimizer=None):
        if order is not None:
            used.append(optimizer.param_groups[0]["lr"])
            fresh.append(not optimizer.state)
            optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"] = torch.zeros(1)
            assert optimizer.param_groups[0]["momentum"] == 0.9 and not optimizer.param_groups[0]["weight_decay"]
        return 1.0, 50.0

    monkeypatch.setattr(module, "sweep", spy)
    monkeypatch.setattr(module.torch, "save", lambda _, path: path.write_text(""))
    status = module.main(["--data-dir", str(written(script)), "--results-dir", str(tmp_path), "--no-download",
                          "--quiet", "--limit", "4", "--head", "fc", "--weights", "none", "--device", "cpu"])
    assert status == 0 and used == pytest.approx(expected) and len(used) == recipe["epochs"]
    begins = [0] + [round(end * recipe["epochs"]) for _, end in recipe["stages"]][:-1]
    assert [epoch for epoch, new in enumerate(fresh) if new] == begins


CURVE = [30, 60, 50, 40, 55, 55]  # two stages of three epochs


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_stages_begin_with_the_best_weights_so_far(written, tmp_path, tiny, monkeypatch, protocol):
    """The weights count the epochs since a reload: each epoch adds one to them."""
    module, before = SCRIPTS["tl_fashion_mnist"], []

    def spy(model, part, options, recipe, order=None, optimizer=None):
        with torch.no_grad():
            bias = model.fc[-1].bias
            if order is not None:
                before.append(float(bias[0]))
                bias[0] += 1
            tested = 10 * (float(bias[0]) - before[0])
        return 1.0, float(CURVE[len(before) - 1]) if part.name == "heldout" else tested

    load = module.load_data

    def named(options, recipe):
        data = load(options, recipe)
        for name in ("train", "heldout", "test"):
            getattr(data, name).name = name
        return data

    monkeypatch.setattr(module, "load_data", named)
    monkeypatch.setattr(module, "sweep", spy)
    start, *_, end = run("tl_fashion_mnist", written("tl_fashion_mnist"), tmp_path, "--epochs", "6", "--head", "fc",
                         "--protocol", protocol)
    assert start["settings"]["stages"] == [[0.01, 3], [0.001, 3]]
    assert before[3] == pytest.approx(before[0] + 2), "the second stage begins with the weights of epoch 2"
    assert end["best_epoch"] == end["selected_epoch"] == 2 and end["best_heldout_accuracy_pct"] == 60
    assert end["selected_test_accuracy_pct"] == pytest.approx(20, abs=0.1)  # two steps
    assert end["last_test_accuracy_pct"] == pytest.approx(50, abs=0.1)  # two and three


# ---- Several processes -----------------------------------------------------------------------------------------------
HELPER = """
import sys
sys.path[:0] = [{tests!r}]
import torch, torchvision, test_transfer
torchvision.datasets.CIFAR10 = test_transfer.without_checksums(torchvision.datasets.CIFAR10)
torchvision.models.get_model = lambda network, weights: test_transfer.Tiny(network)
sys.exit(test_transfer.SCRIPTS["tl_cifar10"].main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="no gloo")
def test_two_processes_take_the_steps_of_one(written, tmp_path, tiny):
    """Batches of 7 are cut into 4 + 3; weights after two epochs, losses and accuracies agree to rounding."""
    folder = written("tl_cifar10")
    more = ("--head", "spinal", "--batch-size", "7", "--limit", "48", "--lr", "0.05", "--save-weights")
    one = run("tl_cifar10", folder, tmp_path / "one", *more)
    helper = tmp_path / "helper.py"
    helper.write_text(HELPER.format(tests=str(ROOT / "tests")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(helper)]
    arguments = ["--data-dir", str(folder), "--results-dir", str(tmp_path / "two"), *flags(*more)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("CIFAR-10 wide_resnet101_2") == 1, "the first process speaks"
    (path,) = (tmp_path / "two/logs/tl_cifar10").iterdir()
    two = [json.loads(line) for line in path.read_text().splitlines()]
    assert two[0]["provenance"]["processes"] == 2 and "batch_norm" in two[0]["departures"] and "-bn3-" in path.name
    for ours, theirs in zip(two[1:-1], one[1:-1]):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-4)
        assert ours["test_accuracy_pct"] == theirs["test_accuracy_pct"]
    (a,), (b,) = ((tmp_path / x / "weights/tl_cifar10").iterdir() for x in ("one", "two"))
    a, b = torch.load(a), torch.load(b)
    assert all(torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-6) for key in a)


# ---- Mistakes --------------------------------------------------------------------------------------------------------
def fails(capsys, script, *arguments):
    capsys.readouterr()
    assert SCRIPTS[script].main(list(map(str, arguments))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines)
    return lines[-1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_data_are_named_with_where_to_get_them(script, tmp_path, capsys):
    results = tmp_path / "results"
    message = fails(capsys, script, "--data-dir", tmp_path / "none", "--results-dir", results, *flags())
    assert str(tmp_path / "none") in message and SCRIPTS[script].WHERE in message and not results.exists()


@pytest.mark.parametrize("damage, words", [
    ("class", "not 2"), ("empty", "class001"), ("text", "class001/image_0002.jpg cannot be read"),
    ("torn", "class001/image_0002.jpg cannot be read"), ("other", "other classes than the train folder")])
def test_damaged_folders_are_named(damage, words, tmp_path, tiny, capsys):
    WRITERS["tl_hymenoptera"](tmp_path)
    base = tmp_path / "hymenoptera_data"
    victim = base / "train/class001/image_0002.jpg"
    if damage == "class":
        for part in ("train", "val"):
            (base / part / "third").mkdir()
            (base / part / "third/a.jpg").write_bytes(victim.read_bytes())
    elif damage == "empty":
        for path in victim.parent.iterdir():
            path.unlink()
    elif damage == "text":
        victim.write_text("no image")
    elif damage == "torn":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(victim)
        victim.write_bytes(victim.read_bytes()[:5000])
    else:
        (base / "val/class001").rename(base / "val/wasps")
    for workers in ("0", "2") if damage == "torn" else ("0",):
        message = fails(capsys, "tl_hymenoptera", "--data-dir", tmp_path, "--results-dir", tmp_path / "results",
                        *flags("--limit", "100", "--workers", workers))
        assert words in message and len(message) < 700 and not list((tmp_path / "results").rglob("*.jsonl"))


@pytest.mark.parametrize("flag, words", [
    (("--head", "fc", "--width", "3"), "belong to the Spinal head"), (("--epochs", "0"), "--epochs must be"),
    (("--batch-size", "1"), "--batch-size must be"), (("--weights", "x"), "--weights"),
    (("--image-size", "3"), "--image-size")])
def test_mistakes_on_the_command_line_end_with_status_2(flag, words, capsys):
    with pytest.raises(SystemExit) as end:
        SCRIPTS["tl_cifar10"].main([*flags(*flag)])
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_single_last_image_is_left_out(written, tmp_path, tiny, monkeypatch):
    """Q14: of 16 images one is left over by batches of three, and batch norm of a DBR head cannot train on it."""
    monkeypatch.setitem(SCRIPTS["tl_cifar10"].RECIPES[WRN], "spinal", (4, 8, "DBR"))
    lines = run("tl_cifar10", written("tl_cifar10"), tmp_path, "--head", "spinal", "--limit", "16", "--batch-size", "3")
    assert lines[-1]["outcome"] == "finished" and lines[0]["data"]["train"] == 16


def test_weights_that_cannot_be_had_are_one_sentence(written, tmp_path, capsys, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    message = fails(capsys, "tl_cifar10", "--data-dir", written("tl_cifar10"), "--results-dir", tmp_path / "results",
                    "--no-download", "--network", "resnet18", "--head", "fc", "--workers", "0", "--quiet")
    assert "weights of resnet18 cannot be had" in message and "no route to host" in message
    assert "--weights none" in message and str(tmp_path / "torch") in message and "resnet18-" in message
    assert not list((tmp_path / "results").rglob("*.jsonl*"))


def test_default_weights_are_the_first_of_imagenet(monkeypatch):
    asked = []
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: asked.append(weights) or Tiny(name))
    for pretrained in (True, False):
        SCRIPTS["tl_cifar10"].build_network(WRN, "fc", pretrained=pretrained)
    assert asked == [torchvision.models.Wide_ResNet101_2_Weights.IMAGENET1K_V1, None]


def test_fetch_only_trains_nothing_and_results_that_cannot_be_written_are_one_sentence(written, tmp_path, tiny, capsys):
    arguments = ["--data-dir", str(written("tl_cifar10")), "--results-dir", str(tmp_path / "results"), *flags()]
    assert SCRIPTS["tl_cifar10"].main([*arguments, "--fetch-only"]) == 0 and not (tmp_path / "results").exists()
    (tmp_path / "results").write_text("")
    assert str(tmp_path / "results") in fails(capsys, "tl_cifar10", *arguments)


# ---- tools/scale_images.py -------------------------------------------------------------------------------------------
def test_pictures_are_scaled_once_and_keep_their_places(tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    for name, size in (("a/large.jpg", (60, 40)), ("a/tall.png", (30, 90)), ("b/small.jpg", (12, 16))):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(old / name)
    (old / "labels.mat").write_bytes(b"labels")
    assert scale_images.main([str(old), str(new), "--side", "20"]) == 0
    assert {p.relative_to(new).as_posix(): Image.open(p).size for p in new.rglob("*.*") if p.suffix != ".mat"} == {
        "a/large.jpg": (30, 20), "a/tall.png": (20, 60), "b/small.jpg": (12, 16)}
    assert (new / "b/small.jpg").read_bytes() == (old / "b/small.jpg").read_bytes()
    assert (new / "labels.mat").read_bytes() == b"labels" and "2 pictures scaled" in capsys.readouterr().out
    (old / "b/broken.jpg").write_text("no picture")
    assert scale_images.main([str(old), str(new), "--side", "20"]) == 2
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err and " 0 pictures scaled" in captured.out
    with pytest.raises(SystemExit):
        scale_images.main([str(old), str(old / "new")])
