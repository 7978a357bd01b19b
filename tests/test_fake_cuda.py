"""The scripts on tensors of a GPU that have no content (FakeCuda in cuda_stand_in.py), on any machine: a generator or
an index on the wrong device and an operation without a kernel on CUDA fail here and now.

Not so the backward pass: autograd's engine, which is C++, asks the driver for the device ("hasPrimaryContext") before
it calls anything that could be replaced. It is run on the CPU instead, all its operations are written down, and each
must have a kernel on CUDA; test_capture_on_cpu.py has the numbers. Which types a kernel takes, what it computes and how
much memory it needs is seen on a GPU only.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import load_script
from cuda_stand_in import CUDA, FakeCuda, has_cuda_kernel
from image_data import write_data
from test_cuda import AUGMENTED, networks, pictures, trainer_of

CPU = torch.device("cpu")


def fake_trainer(name: str, network: str, head: str):
    return trainer_of(name, network, head, device=CUDA)


@pytest.mark.parametrize("name, network, head", [
    x for x in networks() if x[1] not in ("vgg13", "vgg16", "vgg19", "resnet34", "resnet34relu", "resnet18relu")
    and x[1:] != ("densenet", "fc")])  # fmt: skip
def test_evaluation(name, network, head):
    """The forward pass, too; two numbers are read at the end. Networks that differ in depth alone are left out."""
    with FakeCuda() as machine:
        images, labels = (x.to(CUDA) for x in pictures(name, 6, CPU))
        trainer = fake_trainer(name, network, head)
        assert all(x.device == CUDA for x in [*trainer.network.state_dict().values(), trainer.mean, trainer.total])
        assert trainer.optimizer.param_groups[0]["lr"].device == CUDA and machine.reads <= 2
        machine.reads = 0
        trainer.evaluate(images, labels)
    assert machine.reads == 2 and "aten::convolution" in machine.operations


@pytest.mark.parametrize("name, network, head", [
    ("MNIST/mnist", "cnn", "spinal"), ("MNIST/mnist", "vgg5", "spinal")])  # fmt: skip
def test_training_but_for_the_backward_pass(monkeypatch, name, network, head):
    """An epoch: its batches, the rate, the forward pass, the optimiser; gradients are put in. One number is read."""
    def gradients(loss) -> None:
        assert loss.device == CUDA and loss.grad_fn is not None
        for x in trainer.network.parameters():
            x.grad = torch.zeros_like(x)

    with FakeCuda() as machine:
        images, labels = (x.to(CUDA) for x in pictures(name, 11, CPU))
        order = torch.randperm(11, generator=torch.Generator().manual_seed(1)).to(CUDA)
        trainer = fake_trainer(name, network, head)
        monkeypatch.setattr(torch.Tensor, "backward", gradients)
        trainer.graph, trainer.batch = type("", (), {"replay": lambda graph: trainer.step(*trainer.batch)})(), None
        trainer.batch = images[:4].clone(), labels[:4].clone()
        machine.reads = 0
        trainer.epoch(images, labels, order, 0.5, True)
    assert machine.reads == 1 and any("_fused_" in x for x in machine.operations)


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.add(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not torch.version.cuda, reason="this PyTorch is built without CUDA and knows none of its kernels")
@pytest.mark.parametrize("name, network, head", [
    ("MNIST/mnist", "cnn", "fc"), ("MNIST/mnist", "cnn", "spinal"), ("MNIST/arch2_mnist", "arch2", "spinal"),
    ("CIFAR/cifar10", "lenet", "fc"), ("CIFAR/cifar10", "resnet18", "spinal"),
    ("CIFAR/cifar10", "densenet", "fc")])  # fmt: skip
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
    """Parameters are drawn on the CPU; the pixels never leave the device, and nothing is read from it."""
    script = load_script(name)
    with FakeCuda() as machine:
        images = pictures(name, 20, CPU)[0].to(CUDA)
        views = script.augment(images, script.recipe_of(network, "published")["augmentation"],
                               torch.Generator().manual_seed(1))  # fmt: skip
    assert views.device == CUDA and views.dtype == torch.uint8 and views.shape == images.shape and machine.reads == 0


def test_data(tmp_path):
    """What is held out, and the moments of the rest: on the device, but for the numbers that go into the log."""
    write_data(tmp_path, "MNIST/mnist")
    script = load_script("MNIST/mnist")
    options, recipe = script.parse_arguments(["--protocol", "corrected", "--no-download", "--data-dir", str(tmp_path)])
    with FakeCuda() as machine:
        data = script.load_data(options, recipe, CUDA)
    for part, count in ((data.train, 55), (data.heldout, 5), (data.test, 30)):
        images, labels = part
        assert images.shape == (count, 1, 28, 28) and images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert images.device == labels.device == CUDA
    assert machine.reads == 2 and data.facts["train"] == 55


def test_the_backward_pass_still_cannot_run_so():
    """When this fails the backward pass can be tested here, too."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with FakeCuda(), pytest.raises(RuntimeError):
        torch.ones(2, device=CUDA, requires_grad=True).sum().backward()


WRONG = {  # what the machine must refuse
    "generator": lambda x: torch.rand(3, device=CUDA, generator=torch.Generator()),
    "index": lambda x: x.index_select(0, torch.arange(2)),
    "operand": lambda x: x + torch.ones(3),
    "kernel": lambda x: torch.ops.aten.mkldnn_convolution(x.view(1, 1, 1, 3), x.view(1, 1, 1, 3), None, [0, 0], [1, 1],
                                                          [1, 1], 1),
    "rate": lambda x: torch._fused_sgd_([x], [x.clone()], [], lr=torch.ones(()), weight_decay=0.0, momentum=0.0,
                                        dampening=0.0, nesterov=False, maximize=False, is_first_step=False),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_on_a_gpu_fails(what):
    if what == "kernel" and not torch.version.cuda:
        pytest.skip("this PyTorch is built without CUDA and knows none of its kernels")
    with FakeCuda(), pytest.raises((RuntimeError, NotImplementedError)):
        WRONG[what](torch.ones(3, device=CUDA))
