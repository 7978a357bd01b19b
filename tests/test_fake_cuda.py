"""The scripts on tensors of a GPU that have no content (FakeCuda in cuda_stand_in.py), anywhere.

A generator or an index on the wrong device and an operation without a kernel on CUDA fail here and
now. Not so the backward pass: autograd's engine, which is C++, asks the driver for the device
before it calls anything that could be replaced. It runs on the CPU instead, and each of its
operations must have a kernel on CUDA; test_capture_on_cpu.py has the numbers. What a kernel
computes and how much memory it needs is seen on a GPU only.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import load_script
from cuda_stand_in import CUDA, FakeCuda, has_cuda_kernel
from test_cuda import AUGMENTED, CNN, CPU, VGG5, networks, numbers, pictures, trainer_of, write_data

DEEP = {"vgg13", "vgg16", "vgg19", "resnet34"}  # they differ from others in depth alone
WITH_KERNELS = pytest.mark.skipif(
    not torch.version.cuda, reason="this PyTorch is built without CUDA and knows no kernels of it"
)


@pytest.mark.parametrize("name, network, head", [x for x in networks() if x[1] not in DEEP])
def test_evaluation(name, network, head):
    """The forward pass, too; the loss is read once, at the end."""
    with FakeCuda() as machine:
        images, labels = (x.to(CUDA) for x in pictures(name, 6, CPU))
        trainer = trainer_of(name, network, head, device=CUDA)
        places = [*trainer.network.state_dict().values(), trainer.mean, trainer.total]
        assert {x.device for x in places} == {CUDA}
        assert trainer.optimizer.param_groups[0]["lr"].device == CUDA
        machine.reads = 0
        loss, right = trainer.evaluate(images, labels)
    assert right.device == CUDA and machine.reads == 1
    assert "aten::convolution" in machine.operations


@pytest.mark.parametrize("name, network, head", [CNN, VGG5])
def test_training_but_for_the_backward_pass(monkeypatch, name, network, head):
    """An epoch: its batches, the rate, the forward pass, the optimiser. One number is read."""

    def gradients(loss) -> None:
        assert loss.device == CUDA and loss.grad_fn is not None
        for x in trainer.network.parameters():
            x.grad = torch.zeros_like(x)

    with FakeCuda() as machine:
        images, labels = (x.to(CUDA) for x in pictures(name, 11, CPU))
        trainer = trainer_of(name, network, head, device=CUDA)
        trainer.graph_step = trainer.step
        monkeypatch.setattr(torch.Tensor, "backward", gradients)
        trainer.begin(1)
        machine.reads = 0
        trainer.epoch(images, labels, numbers(11, CPU).to(CUDA).split(4), 0.5)
    assert machine.reads == 1 and any("_fused_" in x for x in machine.operations)


class Names(TorchDispatchMode):
    """The operations that ran."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.add(func)
        return func(*args, **(kwargs or {}))


@WITH_KERNELS
@pytest.mark.parametrize(
    "name, network, head",
    [CNN, ("MNIST/arch2_mnist", "arch2", "spinal"), ("CIFAR/cifar10", "resnet18", "spinal")],
)
def test_every_operation_of_a_step_has_a_kernel(name, network, head):
    trainer = trainer_of(name, network, head, 2, CPU)
    with Names() as names:
        trainer.step(*pictures(name, 2, CPU))
    assert any("backward" in x.name() for x in names.found)
    assert [x.name() for x in names.found if not has_cuda_kernel(x)] == []
    for x in ("_fused_adam_.tensor_lr", "_fused_sgd_.tensor_lr"):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"aten::{x}", "CUDA")


@pytest.mark.parametrize("name, network", AUGMENTED)
def test_views(name, network):
    """Parameters are drawn on the CPU; the pixels never leave the device; nothing is read."""
    script = load_script(name)
    steps = script.recipe_of(network, "fc", "published").augmentation
    with FakeCuda() as machine:
        images = pictures(name, 20, CPU)[0].to(CUDA)
        views = script.augment(images, steps, torch.Generator().manual_seed(1))
    assert views.device == CUDA and views.dtype == torch.uint8
    assert views.shape == images.shape and machine.reads == 0


def test_data(tmp_path):
    """What is held out, and the rest: on the device."""
    write_data(tmp_path, "MNIST/mnist", train=60, test=30)
    script = load_script("MNIST/mnist")
    recipe = script.recipe_of("cnn", "fc", "corrected")
    with FakeCuda():
        data = script.load_data(tmp_path, recipe, False, CUDA)
    for part, count in ((data.train, 55), (data.heldout, 5), (data.test, 30)):
        images, labels = part
        assert images.shape == (count, 1, 28, 28) and images.dtype == torch.uint8
        assert labels.dtype == torch.int64 and images.device == labels.device == CUDA


def kernel_of_the_cpu(x: torch.Tensor) -> torch.Tensor:
    x = x.view(1, 1, 1, 3)
    return torch.ops.aten.mkldnn_convolution(x, x, None, [0, 0], [1, 1], [1, 1], 1)


def rate_on_the_cpu(x: torch.Tensor) -> None:
    options = {"weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False}
    options |= {"maximize": False, "is_first_step": False}
    torch._fused_sgd_([x], [x.clone()], [], lr=torch.ones(()), **options)


WRONG = {  # what the machine must refuse
    "generator": lambda x: torch.rand(3, device=CUDA, generator=torch.Generator()),
    "index": lambda x: x.index_select(0, torch.arange(2)),
    "operand": lambda x: x + torch.ones(3),
    "kernel": kernel_of_the_cpu,
    "rate": rate_on_the_cpu,
}


@WITH_KERNELS
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_on_a_gpu_fails(what):
    with FakeCuda(), pytest.raises((RuntimeError, NotImplementedError)):
        WRONG[what](torch.ones(3, device=CUDA))
