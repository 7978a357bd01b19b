"""The tests of test_cuda.py with a stand-in for CUDA (cuda_stand_in.py): their text runs, and so does the scripts'
CUDA path, with its recording and its replays, on a machine without a GPU. Here both ways give the same numbers exactly.
"""

import json

import pytest
import torch

import test_cuda
from conftest import load_script
from cuda_stand_in import CudaOnTheCpu
from image_data import write_data

SMALL = [("MNIST/mnist", "cnn", "fc"), ("MNIST/mnist", "cnn", "spinal"), ("MNIST/arch2_mnist", "arch2", "spinal"),
         ("CIFAR/cifar10", "lenet", "spinal"), ("CIFAR/cifar10", "lenet", "fc")]  # fmt: skip
CNN = SMALL[1]


@pytest.fixture
def stand_in(monkeypatch):
    for kind in test_cuda.NEAR:
        monkeypatch.setitem(test_cuda.NEAR, kind, 0.0)
    monkeypatch.setattr(test_cuda, "BACKEND", "gloo")
    with CudaOnTheCpu() as machine:
        yield machine


@pytest.fixture
def adam(monkeypatch):
    """The small CNN with the optimiser of the large networks, and batch norm between its layers."""
    script = load_script("MNIST/mnist")
    monkeypatch.setitem(script.RECIPES, "cnn", script.RECIPES["cnn"] | {"optimizer": "Adam"})
    build = script.build_network

    def with_batch_norm(*rest, **more):
        network = build(*rest, **more)
        network[0].insert(1, torch.nn.BatchNorm2d(10))
        return network

    monkeypatch.setattr(script, "build_network", with_batch_norm)


@pytest.mark.parametrize("name, network, head", SMALL)
def test_a_graph_is_the_plain_step(stand_in, name, network, head):
    test_cuda.test_a_graph_is_the_plain_step(name, network, head)
    assert [graph.replays for graph in stand_in.graphs] == [2 + 2 + 4]


def test_a_graph_is_the_plain_step_of_adam_with_batch_norm(stand_in, adam):
    test_cuda.test_a_graph_is_the_plain_step(*CNN)


def test_the_comparison(stand_in):
    test_cuda.test_what_makes_a_graph_wrong_is_seen()


def test_each_replay_has_masks_of_its_own(stand_in):
    test_cuda.test_each_replay_has_masks_of_its_own(*SMALL[0])
    test_cuda.test_without_a_full_batch_there_is_no_graph()


def test_an_epoch_waits_for_the_device_only_at_its_end(stand_in, monkeypatch):
    test_cuda.test_an_epoch_waits_for_the_device_only_at_its_end(monkeypatch, *CNN)


@pytest.mark.parametrize("trained", [False, True])
def test_recording_leaves_everything_as_it_was(stand_in, adam, trained):
    test_cuda.test_recording_leaves_everything_as_it_was(*CNN, trained)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_an_interrupted_run_goes_on(stand_in, tmp_path, monkeypatch, capsys, optimizer):
    test_cuda.test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, capsys, "cnn", optimizer)
    assert all(graph.replays for graph in stand_in.graphs)


def test_settings(stand_in, tmp_path, monkeypatch, capsys):
    test_cuda.test_fp32_is_fp32(tmp_path)
    test_cuda.test_the_device_that_is_named_is_the_current_one(tmp_path, monkeypatch)
    for name in ("MNIST/mnist", "CIFAR/cifar10"):
        test_cuda.test_bf16_is_refused_where_it_is_emulated(monkeypatch, capsys, name)


def test_a_failed_recording(stand_in, tmp_path, monkeypatch, capsys):
    test_cuda.test_a_failed_recording_ends_the_run_and_says_so(tmp_path, monkeypatch, capsys)


def test_evaluation_and_views(stand_in):
    test_cuda.test_evaluation_is_that_of_the_cpu(*CNN)
    test_cuda.test_views_are_those_of_the_cpu(*test_cuda.AUGMENTED[0])


@pytest.mark.slow
def test_transfer(stand_in, tmp_path):
    test_cuda.test_a_group_of_one_process_trains_the_same_network(tmp_path)


def test_views_leave_the_random_numbers_of_the_device_alone(stand_in, tmp_path, monkeypatch):
    test_cuda.test_views_leave_the_random_numbers_of_the_device_alone(tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_the_way_of_cuda_trains_the_network_of_the_cpu(tmp_path, monkeypatch, kind):
    """The same command with the stand-in and without it: the same losses but for the rate, a float32 on CUDA."""
    script, losses = load_script("MNIST/mnist"), []
    monkeypatch.setitem(script.RECIPES, "cnn", script.RECIPES["cnn"] | {"optimizer": kind})
    write_data(tmp_path / "data", "MNIST/mnist")
    for device in ("cpu", "cuda"):
        command = [*test_cuda.arguments(tmp_path), "--head", "spinal", "--device", device, "--overwrite"]
        if device == "cuda":
            with CudaOnTheCpu():
                assert script.main(command) == 0
        else:
            assert script.main(command) == 0
        (log,) = (tmp_path / "results" / "logs" / "mnist").iterdir()
        losses.append([json.loads(line)["train_loss"] for line in log.read_text().splitlines()[1:-1]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 4
