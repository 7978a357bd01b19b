"""The CUDA path of the scripts, on a GPU. Without one these tests are skipped: test_capture_on_cpu.py runs their text
with a stand-in for CUDA, and test_fake_cuda.py the scripts with tensors that have no content."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from conftest import ROOT, load_script
from image_data import write_data
from transfer_data import WRITERS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICE, BACKEND = torch.device("cuda", 0), "nccl"
# Relative distances that rounding explains; a stale batch, rate or mask gives 0.1 and more. Adam makes whole steps of
# gradients that are nothing but rounding (biases before batch norm), hence the second.
NEAR = {"gradients": 1e-2, "weights": 5e-2, "statistics": 2e-2, "moments": 2e-2, "counts": 0.0, "loss": 1e-3}


def networks() -> list[tuple]:
    """Script, network, head of everything that has a text of its own; the other scripts share these texts."""
    scripts = {name: load_script(name) for name in ("MNIST/mnist", "MNIST/arch2_mnist", "CIFAR/cifar10")}
    return [(name, x, head) for name, script in scripts.items() for x in script.RECIPES for head in script.HEADS]


ALL = pytest.mark.parametrize("name, network, head", networks())


@pytest.fixture(autouse=True)
def plain_settings():
    """As main() sets them; and algorithms whose sums have one order."""
    kept = [(x, x.allow_tf32) for x in (torch.backends.cuda.matmul, torch.backends.cudnn)]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    deterministic, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    yield
    torch.backends.cudnn.deterministic = deterministic
    for place, value in kept:
        place.allow_tf32 = value


def trainer_of(name: str, network: str, head: str, size: int = 4, device: torch.device | None = None, **changes):
    script = load_script(name)
    torch.manual_seed(1)
    recipe = script.recipe_of(network, "published") | {"precision": "fp32", "batch_size": size} | changes
    return script.Trainer(script.build_network(network, head), recipe, device or DEVICE)


def pictures(name: str, count: int, device: torch.device | None = None) -> tuple:
    generator = torch.Generator().manual_seed(2)
    shape = (3, 32, 32) if name.startswith("CIFAR") else (1, 28, 28)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return images.to(device or DEVICE), torch.randint(0, 10, (count,), generator=generator).to(device or DEVICE)


def plain_epoch(trainer, images, labels, order, rate) -> float:
    """The reference: what an epoch is, written down without graph."""
    trainer.network.train()
    trainer.total.zero_()
    for group in trainer.optimizer.param_groups:
        group["lr"].fill_(rate)
    for index in order.split(trainer.recipe["batch_size"]):
        trainer.step(images[index], labels[index])
    return float(trainer.total) / len(order)


def content(trainer) -> dict[str, list]:
    moments = [x for state in trainer.optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    buffers = list(trainer.network.buffers())
    kinds = dict(
        weights=list(trainer.network.parameters()),
        gradients=[x.grad for x in trainer.network.parameters() if x.grad is not None],
        statistics=[x for x in buffers if x.is_floating_point()],
        moments=[x for x in moments if x.ndim],
        counts=[x for x in [*buffers, *moments] if not x.ndim],
    )
    return {kind: [x.detach().double().flatten().clone() for x in tensors] for kind, tensors in kinds.items()}


def distances(ours: dict, theirs: dict, start: dict) -> dict[str, float]:
    """Of each kind, relative to what training changed."""
    result = {}
    for kind, tensors in theirs.items():
        assert len(ours[kind]) == len(tensors)
        if tensors:
            base = torch.cat(start[kind]) if kind == "weights" else 0.0
            a, b = torch.cat(ours[kind]), torch.cat(tensors)
            result[kind] = float((a - b).norm() / (b - base).norm().clamp_min(1e-12))
    return result


def assert_near(found: dict[str, float]) -> None:
    assert {kind: x for kind, x in found.items() if not x <= NEAR[kind]} == {}  # also NaN is far


def compare_ways(name: str, network: str, head: str, **changes) -> None:
    """Epochs with a graph and without: other batches, another rate, a last batch of another size, a replay after it."""
    ours, theirs = (trainer_of(name, network, head, **changes) for _ in range(2))
    size, rate = ours.recipe["batch_size"], ours.recipe["learning_rate"]
    images, labels = pictures(name, 4 * size)
    start = content(theirs)
    order = torch.randperm(4 * size, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    for epoch, (part, factor) in enumerate([(order[: 2 * size], 1.0), (order[: 2 * size + 3], 0.25), (order, 0.5)]):
        torch.manual_seed(epoch)
        mine = ours.epoch(images, labels, part, factor * rate, True)
        torch.manual_seed(epoch)
        reference = plain_epoch(theirs, images, labels, part, factor * rate)
        found = distances(content(ours), content(theirs), start)
        if epoch == 2:  # the graph's gradients are where it was recorded, and nobody reads them
            found.pop("gradients")
        assert_near(found | {"loss": abs(mine - reference) / abs(reference)})
    assert ours.graph is not None and theirs.graph is None


@ALL
def test_a_graph_is_the_plain_step(name, network, head):
    compare_ways(name, network, head)


@pytest.mark.parametrize("network", ["cnn", "vgg5"])
def test_a_graph_is_the_plain_step_in_bf16(monkeypatch, network):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU only emulates bf16")
    for kind in NEAR:
        monkeypatch.setitem(NEAR, kind, max(NEAR[kind], 5e-2) if kind != "counts" else 0.0)
    compare_ways("MNIST/mnist", network, "spinal", precision="bf16")


def test_what_makes_a_graph_wrong_is_seen():
    """The comparison itself: a rate or a batch that stays, or one mask for all steps, is far from the plain steps."""
    losses, kinds = [], []
    right, stale = [0, 1, 2], [0, 0, 0]
    for batches, rate, seed in ((right, 0.01, 0), (stale, 0.01, 0), (right, 0.005, 0), (right, 0.01, 1)):
        trainer = trainer_of("MNIST/mnist", "cnn", "fc")
        images, labels = pictures("MNIST/mnist", 12)
        start = content(trainer)
        torch.manual_seed(seed)
        order = torch.cat([torch.arange(4 * k, 4 * k + 4) for k in batches]).to(DEVICE)
        losses.append(plain_epoch(trainer, images, labels, order, rate))
        kinds.append(content(trainer))
    for other in kinds[1:]:
        assert distances(other, kinds[0], start)["weights"] > 0.1


@pytest.mark.parametrize("name, network, head", [
    ("MNIST/mnist", "cnn", "fc"), ("MNIST/mnist", "vgg5", "spinal"), ("CIFAR/cifar10", "vgg11", "fc"),
    ("CIFAR/cifar10", "resnet18", "spinal")])  # fmt: skip
def test_each_replay_has_masks_of_its_own(name, network, head):
    """The same batch again and again without learning: only the masks differ; the same seed brings the same ones."""
    images, labels = pictures(name, 4)
    order = torch.arange(4, device=DEVICE)

    def losses(one_epoch) -> list[float]:
        torch.manual_seed(5)
        return [one_epoch(images, labels, order, 0.0) for _ in range(4)]

    ours, theirs = trainer_of(name, network, head), trainer_of(name, network, head)
    first = losses(lambda *x: ours.epoch(*x, True))
    assert len(set(first)) == 4
    assert losses(lambda *x: ours.epoch(*x, True)) == pytest.approx(first, rel=1e-4)
    assert losses(lambda *x: plain_epoch(theirs, *x)) == pytest.approx(first, rel=1e-4)  # masks of the plain steps


def test_without_a_full_batch_there_is_no_graph():
    trainer = trainer_of("MNIST/mnist", "cnn", "spinal", 8)
    trainer.epoch(*pictures("MNIST/mnist", 5), torch.arange(5, device=DEVICE), 0.01, True)
    assert trainer.graph is None


@pytest.mark.parametrize("name, network, head", [("MNIST/mnist", "cnn", "spinal"), ("MNIST/mnist", "vgg5", "spinal")])
def test_an_epoch_waits_for_the_device_only_at_its_end(monkeypatch, name, network, head):
    trainer, read = trainer_of(name, network, head), []
    images, labels = pictures(name, 11)
    order = torch.arange(11, device=DEVICE)
    trainer.epoch(images, labels, order, 0.01, True)  # the recording waits

    def reading(x) -> float:
        torch.cuda.set_sync_debug_mode("default")
        read.append(float(x))
        return read[-1]

    monkeypatch.setattr(load_script(name), "float", reading, raising=False)  # the script's, which returns the loss
    try:
        torch.cuda.set_sync_debug_mode("error")
        loss = trainer.epoch(images, labels, order, 0.01, True)
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError):
            trainer.total.item()  # the guard itself
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert read == [pytest.approx(11 * loss)]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name, network, head", [("MNIST/mnist", "cnn", "fc"), ("MNIST/mnist", "vgg5", "spinal")])
def test_recording_leaves_everything_as_it_was(name, network, head, trained):
    trainer = trainer_of(name, network, head)
    images, labels = pictures(name, 8)
    if trained:
        plain_epoch(trainer, images, labels, torch.arange(8, device=DEVICE), 0.01)
    trainer.network.train()
    before, total, random = content(trainer), float(trainer.total), torch.cuda.get_rng_state()
    trainer.capture(images[:4].clone(), labels[:4].clone())
    after = content(trainer)
    for kind in ("weights", "statistics", *["moments", "counts"] * trained):
        assert all(map(torch.equal, after[kind], before[kind])) and len(after[kind]) == len(before[kind])
    if not trained:
        assert after["moments"] and not any(x.any() for kind in ("moments", "counts") for x in after[kind])
    assert float(trainer.total) == total and torch.equal(torch.cuda.get_rng_state(), random)


def arguments(folder, *more: str) -> list[str]:
    return [*"--epochs 4 --batch-size 16 --device cuda --no-download --save-weights --quiet".split(), *more,
            "--data-dir", str(folder / "data"), "--results-dir", str(folder / "results")]  # fmt: skip


@pytest.mark.parametrize("network, optimizer", [("cnn", "SGD"), ("cnn", "Adam"), ("vgg5", "Adam")])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, capsys, network, optimizer):
    script = load_script("MNIST/mnist")
    monkeypatch.setitem(script.RECIPES, network, script.RECIPES[network] | {"optimizer": optimizer})
    epochs, calls, train = {}, [], script.Trainer.epoch

    def interrupted(self, *rest):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(self, *rest)

    for way in ("whole", "interrupted"):
        write_data(tmp_path / way / "data", "MNIST/mnist")
        command = arguments(tmp_path / way, "--network", network, "--head", "spinal")
        if way == "interrupted":
            with monkeypatch.context() as patch:
                patch.setattr(script.Trainer, "epoch", interrupted)
                assert script.main(command) == 130
        assert script.main(command) == 0, capsys.readouterr().err
        (log,) = (tmp_path / way / "results" / "logs" / "mnist").iterdir()
        start, *epochs[way], end = map(json.loads, log.read_text().splitlines())
        assert start["provenance"]["device"] == "cuda" and end["outcome"] == "finished"
    assert "goes on after epoch 2" in capsys.readouterr().err and len(calls) == 3
    for ours, theirs in zip(epochs["interrupted"], epochs["whole"], strict=True):
        assert ours["learning_rate"] == pytest.approx(theirs["learning_rate"])
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=2e-2)
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=5e-2)


def test_fp32_is_fp32(tmp_path):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    write_data(tmp_path / "data", "MNIST/mnist")
    assert load_script("MNIST/mnist").main(arguments(tmp_path, "--fetch-only")) == 0
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(512, 512, dtype=torch.float64, generator=generator) + 1 for _ in range(2))
    product = (a.float().to(DEVICE) @ b.float().to(DEVICE)).cpu().double()
    assert float((product / (a @ b) - 1).abs().max()) < 1e-5  # TF32: more than 1e-4
    x, kernel = a[:64].view(1, 64, 16, 32), torch.ones(8, 64, 3, 3, dtype=torch.float64) + b[:8, :9].view(8, 1, 3, 3)
    ours = nn.functional.conv2d(x.float().to(DEVICE), kernel.float().to(DEVICE)).cpu().double()
    assert float((ours / nn.functional.conv2d(x, kernel) - 1).abs().max()) < 1e-5


@ALL
def test_evaluation_is_that_of_the_cpu(name, network, head):
    cpu = torch.device("cpu")
    ours, theirs = trainer_of(name, network, head), trainer_of(name, network, head, device=cpu)
    loss, accuracy = ours.evaluate(*pictures(name, 64))
    reference, right = theirs.evaluate(*pictures(name, 64, cpu))
    assert loss == pytest.approx(reference, rel=1e-3) and abs(accuracy - right) <= 100 / 64


AUGMENTED = [("MNIST/mnist", "vgg5"), ("MNIST/fashion_mnist", "vgg5"), ("CIFAR/cifar10", "cnn")]


@pytest.mark.parametrize("name, network", AUGMENTED)
def test_views_are_those_of_the_cpu(name, network):
    script, cpu = load_script(name), torch.device("cpu")
    steps = script.recipe_of(network, "published")["augmentation"]
    views = lambda device: script.augment(pictures(name, 500, device)[0], steps, torch.Generator().manual_seed(1))
    ours, theirs = views(DEVICE), views(cpu)
    difference = (ours.cpu().int() - theirs.int()).abs()
    assert ours.shape == theirs.shape and float((difference > 1).float().mean()) < 1e-3  # nearest pixels may be others


@pytest.mark.parametrize("name, network", [*AUGMENTED, ("CIFAR/cifar10", "densenet")])
def test_memory_of_an_epoch(name, network):
    """Views of a whole training set, and the evaluation of 10,000 images: four runs at once fit into 24 GB."""
    script = load_script(name)
    trainer, (images, labels) = trainer_of(name, network, "spinal"), pictures(name, 60_000)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    script.augment(images, trainer.recipe["augmentation"], torch.Generator().manual_seed(1))
    assert torch.cuda.max_memory_allocated() - before < 2**30 + 2 * images.numel()
    torch.cuda.reset_peak_memory_stats()
    trainer.evaluate(images[:10_000], labels[:10_000])
    assert torch.cuda.max_memory_allocated() - before < 4 * 2**30


@pytest.mark.parametrize("name", ["MNIST/mnist", "CIFAR/cifar10"])
def test_bf16_is_refused_where_it_is_emulated(monkeypatch, capsys, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    command = "--precision bf16 --device cuda --no-download --data-dir nowhere".split()
    assert load_script(name).main(command) == 2 and "emulates bf16" in capsys.readouterr().err


def test_a_failed_recording_ends_the_run_and_says_so(tmp_path, monkeypatch, capsys):
    """A step that waits for the host cannot be recorded: no run goes on without saying what happened."""
    script = load_script("MNIST/mnist")
    step = script.Trainer.step

    def waiting(self, images, labels):
        step(self, images, labels)
        self.total.item()

    monkeypatch.setattr(script.Trainer, "step", waiting)
    write_data(tmp_path / "data", "MNIST/mnist")
    assert script.main(arguments(tmp_path, "--head", "spinal")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "captur" in error


def test_the_device_that_is_named_is_the_current_one(tmp_path, monkeypatch):
    """--device cuda:1: graphs, random states and names are those of the current device."""
    write_data(tmp_path / "data", "MNIST/mnist")
    last = torch.cuda.device_count() - 1
    chosen, choose = [], torch.cuda.set_device
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: (chosen.append(torch.device(device)), choose(device)))
    command = [*arguments(tmp_path, "--head", "fc"), "--device", f"cuda:{last}"]
    try:
        assert load_script("MNIST/mnist").main(command) == 0
        assert chosen[0] == torch.device("cuda", last) and torch.cuda.current_device() == last
    finally:
        choose(0)


TINY = "--network resnet18 --weights none --image-size 32 --batch-size 4 --no-download --quiet"


def transfer_part(folder):
    """The transfer script, its options and recipe, and a small part of its data as views."""
    script = load_script("Transfer_Learning/tl_hymenoptera")
    options, recipe = script.parse_arguments([*TINY.split(), "--data-dir", str(folder)])
    options.rank, options.processes, options.workers, options.device = 0, 1, 0, DEVICE
    return script, options, recipe, script.load_data(options, recipe)


def test_a_group_of_one_process_trains_the_same_network(tmp_path):
    """DistributedDataParallel and synchronised batch norm over NCCL, in this process."""
    WRITERS["tl_hymenoptera"](tmp_path)
    script, options, recipe, data = transfer_part(tmp_path)
    distributed.init_process_group(BACKEND, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    losses = []
    try:
        for wrap in (False, True):
            torch.manual_seed(1)
            network = script.build_network("resnet18", "spinal", pretrained=False).to(DEVICE)
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network) if wrap else network
            model = DistributedDataParallel(network) if wrap else network
            optimizer = torch.optim.SGD([x for x in network.parameters() if x.requires_grad], 0.001, momentum=0.9)
            data.train.draws = 0, "view", 1
            order = torch.arange(len(data.train))
            losses.append(script.sweep(model, data.train, options, recipe, order, optimizer)[0])
            losses.append(script.sweep(network, data.test, options, recipe)[0])
    finally:
        distributed.destroy_process_group()
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-3)


def test_views_leave_the_random_numbers_of_the_device_alone(tmp_path, monkeypatch):
    """With --workers 0 views are drawn in the process that trains: its masks on the GPU must not begin anew."""
    WRITERS["tl_hymenoptera"](tmp_path)
    *_, data = transfer_part(tmp_path)
    data.train.draws, seeds = (0, "view", 1), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    before = torch.cuda.get_rng_state()
    data.train[0]
    assert torch.equal(torch.cuda.get_rng_state(), before) and seeds == []


def test_torchrun(tmp_path):
    """One process, and two where there are two GPUs: a step is that of one process to rounding."""
    WRITERS["tl_hymenoptera"](tmp_path / "data")
    losses = []
    for processes in range(1, 1 + min(2, torch.cuda.device_count())):
        results = tmp_path / str(processes)
        command = [
            *[sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node".split(), str(processes)],
            *[str(ROOT / "Transfer_Learning/tl_hymenoptera.py"), *TINY.split(), "--data-dir", str(tmp_path / "data")],
            *["--results-dir", str(results), *"--epochs 2 --workers 1 --device cuda --head spinal".split()],
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        (log,) = results.rglob("*.jsonl")
        start, *epochs, end = map(json.loads, log.read_text().splitlines())
        assert start["provenance"]["processes"] == processes and end["outcome"] == "finished"
        losses.append([line["train_loss"] for line in epochs])
    assert losses[-1] == pytest.approx(losses[0], rel=1e-2)
