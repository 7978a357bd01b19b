"""The tests of test_cuda.py with a stand-in for CUDA (cuda_stand_in.py), without a GPU.

Their text runs, and so does the scripts' CUDA path, with its recording and its replays. Here both
ways give the same numbers exactly.
"""

import json

import pytest
import torch

import test_cuda
from conftest import load_script
from cuda_stand_in import CudaOnTheCpu

SMALL = [
    ("MNIST/mnist", "cnn", "fc"),
    ("MNIST/mnist", "cnn", "spinal"),
    ("MNIST/arch2_mnist", "arch2", "spinal"),
    ("CIFAR/cifar10", "lenet", "spinal"),
]


@pytest.fixture
def stand_in(monkeypatch):
    for kind in test_cuda.NEAR:
        monkeypatch.setitem(test_cuda.NEAR, kind, 0.0)
    with CudaOnTheCpu() as machine:
        yield machine


@pytest.fixture
def adam(monkeypatch):
    """The small CNN with the optimiser of the large networks, and batch norm between its layers."""
    script = load_script("MNIST/mnist")
    for head in script.HEADS:
        recipe = script.replace(script.RECIPES["cnn", head], optimizer="Adam")
        monkeypatch.setitem(script.RECIPES, ("cnn", head), recipe)
    build = script.network_of

    def with_batch_norm(recipe):
        network = build(recipe)
        network[0].insert(1, torch.nn.BatchNorm2d(10))
        return network

    monkeypatch.setattr(script, "network_of", with_batch_norm)


@pytest.mark.parametrize("name, network, head", SMALL)
def test_a_graph_is_the_plain_step(stand_in, name, network, head):
    test_cuda.test_a_graph_is_the_plain_step(name, network, head)
    assert [graph.replays for graph in stand_in.graphs] == [2 + 2 + 4]


def test_a_graph_is_the_plain_step_of_adam_with_batch_norm(stand_in, adam):
    test_cuda.test_a_graph_is_the_plain_step(*test_cuda.CNN)


def test_the_comparison_and_the_masks(stand_in):
    test_cuda.test_what_makes_a_graph_wrong_is_seen()
    test_cuda.test_each_replay_has_masks_of_its_own(*test_cuda.CNN)


def test_an_epoch_waits_for_the_device_only_at_its_end(stand_in, monkeypatch):
    test_cuda.test_an_epoch_waits_for_the_device_only_at_its_end(monkeypatch, *test_cuda.CNN)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_an_interrupted_run_goes_on(stand_in, tmp_path, monkeypatch, optimizer, request):
    if optimizer == "Adam":
        request.getfixturevalue("adam")
    test_cuda.test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, "cnn")
    assert stand_in.graphs and all(graph.replays for graph in stand_in.graphs)


def test_precision_and_device(stand_in, tmp_path):
    test_cuda.test_precision_and_device(tmp_path)


def test_a_failed_recording(stand_in, tmp_path, capsys):
    test_cuda.write_data(tmp_path / "data", "MNIST/mnist", train=96)
    command = test_cuda.arguments(tmp_path, "--head", "spinal")
    assert test_cuda.train_with_a_step_that_waits(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "captur" in error


def test_evaluation_and_views(stand_in):
    test_cuda.test_evaluation_is_that_of_the_cpu(*test_cuda.CNN)
    test_cuda.test_views_are_those_of_the_cpu(*test_cuda.AUGMENTED[0])


def test_transfer(stand_in, tmp_path, monkeypatch):
    test_cuda.test_views_leave_the_random_numbers_of_the_device_alone(tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_group_of_one_process(stand_in, tmp_path):
    test_cuda.test_a_group_of_one_process_trains_the_same_network(tmp_path, "gloo")


def test_the_way_of_cuda_trains_the_network_of_the_cpu(tmp_path):
    """The same losses but for the rate, which is a float32 on CUDA."""
    script, losses = load_script("MNIST/mnist"), []
    test_cuda.write_data(tmp_path / "data", "MNIST/mnist")
    for device in ("cpu", "cuda"):
        more = ["--head", "spinal", "--device", device, "--overwrite"]
        command = [*test_cuda.arguments(tmp_path), *more]
        if device == "cuda":
            with CudaOnTheCpu():
                assert script.main(command) == 0
        else:
            assert script.main(command) == 0
        (log,) = (tmp_path / "results" / "logs" / "mnist").iterdir()
        lines = map(json.loads, log.read_text().splitlines())
        losses.append([line["train_loss"] for line in lines if line["event"] == "epoch"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 4
