"""The CUDA path of the scripts, on a GPU. Without one these tests are skipped.

test_capture_on_cpu.py runs their text with a stand-in for CUDA, and test_fake_cuda.py the scripts
with tensors that have no content.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from conftest import ROOT, load_script

sys.path.insert(0, str(ROOT / "tools"))
from made_up_data import WRITERS, write_data  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
# Relative distances that rounding explains; a stale batch, rate or mask gives 0.1 and more. Adam
# makes whole steps of gradients that are nothing but rounding (biases before batch norm).
NEAR = {"weights": 5e-2, "statistics": 2e-2, "moments": 2e-2, "counts": 0.0, "loss": 1e-3}
SCRIPTS = ["MNIST/mnist", "MNIST/arch2_mnist", "CIFAR/cifar10"]  # the others share their texts
CNN, VGG5 = ("MNIST/mnist", "cnn", "spinal"), ("MNIST/mnist", "vgg5", "spinal")


def networks() -> list[tuple]:
    """Script, network and head of everything that has a text of its own."""
    found = []
    for name in SCRIPTS:
        script = load_script(name)
        found += [(name, x, head) for x in script.NETWORKS for head in script.HEADS]
    return found


ALL = pytest.mark.parametrize("name, network, head", networks())


@pytest.fixture(autouse=True)
def exact_settings():
    """fp32 without TF32, and algorithms whose sums have one order."""
    cudnn = torch.backends.cudnn
    kept = cudnn.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, cudnn.deterministic = False, True
    yield
    cudnn.allow_tf32, cudnn.deterministic = kept


def trainer_of(name, network, head, size=4, device=None, **changes):
    """The script's trainer with fresh weights, for batches of `size`."""
    script = load_script(name)
    torch.manual_seed(1)
    recipe = script.recipe_of(network, head, "published", batch_size=size, **changes)
    return script.TRAINER(script.network_of(recipe), recipe, device or DEVICE)


def pictures(name: str, count: int, device: torch.device | None = None) -> tuple:
    generator = torch.Generator().manual_seed(2)
    shape = (3, 32, 32) if name.startswith("CIFAR") else (1, 28, 28)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return images.to(device or DEVICE), labels.to(device or DEVICE)


def numbers(count: int, device: torch.device | None = None) -> torch.Tensor:
    """The numbers below count, shuffled."""
    generator = torch.Generator().manual_seed(3)
    return torch.randperm(count, generator=generator).to(device or DEVICE)


def our_epoch(trainer, images, labels, batches, rate) -> float:
    trainer.begin(1)
    return trainer.epoch(images, labels, batches, rate)


def plain_epoch(trainer, images, labels, batches, rate) -> float:
    """The reference: what an epoch is, written down without graph."""
    trainer.begin(1)
    trainer.total.zero_()
    for group in trainer.optimizer.param_groups:
        group["lr"].fill_(rate)
    for index in batches:
        trainer.step(images[index], labels[index])
    return float(trainer.total) / len(labels)


def content(trainer) -> dict[str, torch.Tensor]:
    """All that training changes, by kind."""
    moments = []
    for state in trainer.optimizer.state.values():
        moments += [x for x in state.values() if isinstance(x, torch.Tensor)]
    buffers = list(trainer.network.buffers())
    kinds = {
        "weights": list(trainer.network.parameters()),
        "statistics": [x for x in buffers if x.is_floating_point()],
        "moments": [x for x in moments if x.ndim],
        "counts": [x for x in [*buffers, *moments] if not x.ndim],
    }
    flat = {}
    for kind, tensors in kinds.items():
        if tensors:
            flat[kind] = torch.cat([x.detach().double().flatten() for x in tensors])
    return flat


def distances(ours: dict, theirs: dict, start: dict) -> dict[str, float]:
    """Of each kind, relative to what training changed."""
    assert ours.keys() == theirs.keys()
    result = {}
    for kind, x in theirs.items():
        base = start[kind] if kind == "weights" else 0.0
        result[kind] = float((ours[kind] - x).norm() / (x - base).norm().clamp_min(1e-12))
    return result


def compare_ways(name: str, network: str, head: str, **changes) -> None:
    """Epochs with a graph and without.

    Five batches, of which three come before the recording; two with another rate and a smaller one;
    four more.
    """
    ours, theirs = (trainer_of(name, network, head, **changes) for _ in range(2))
    size, rate = ours.recipe.batch_size, ours.recipe.learning_rate
    images, labels = pictures(name, 5 * size)
    start, order = content(theirs), numbers(5 * size)
    epochs = [(order, rate), (order[: 2 * size + 3], rate / 4), (order[size:], rate / 2)]
    for epoch, (part, now) in enumerate(epochs):
        torch.manual_seed(epoch)
        mine = our_epoch(ours, images, labels, part.split(size), now)
        torch.manual_seed(epoch)
        reference = plain_epoch(theirs, images, labels, part.split(size), now)
        found = distances(content(ours), content(theirs), start)
        found["loss"] = abs(mine - reference) / abs(reference)
        assert {kind: x for kind, x in found.items() if not x <= NEAR[kind]} == {}  # nor NaN
    assert ours.graph is not None and theirs.graph is None


@ALL
def test_a_graph_is_the_plain_step(name, network, head):
    compare_ways(name, network, head)


@pytest.mark.parametrize("network", ["cnn", "vgg5"])
def test_a_graph_is_the_plain_step_in_bf16(monkeypatch, network):
    for kind in NEAR:
        monkeypatch.setitem(NEAR, kind, max(NEAR[kind], 5e-2) if kind != "counts" else 0.0)
    compare_ways("MNIST/mnist", network, "spinal", precision="bf16")


def test_what_makes_a_graph_wrong_is_seen():
    """The comparison itself: a batch or a rate that stays, or other masks, are far from right."""
    right, stale = numbers(12).split(4), [numbers(12)[:4]] * 3
    results = []
    for batches, rate, seed in (
        (right, 0.01, 0),
        (stale, 0.01, 0),
        (right, 0.005, 0),
        (right, 0.01, 1),
    ):
        trainer = trainer_of("MNIST/mnist", "cnn", "fc")
        start = content(trainer)
        torch.manual_seed(seed)
        plain_epoch(trainer, *pictures("MNIST/mnist", 12), batches, rate)
        results.append(content(trainer))
    for other in results[1:]:
        assert distances(other, results[0], start)["weights"] > 0.1


@pytest.mark.parametrize("name, network, head", [CNN, VGG5, ("CIFAR/cifar10", "vgg11", "fc")])
def test_each_replay_has_masks_of_its_own(name, network, head):
    """One batch again and again without learning: only the masks differ, and a seed brings them."""
    images, labels = pictures(name, 4)

    def losses(one_epoch, trainer) -> list[float]:
        torch.manual_seed(5)
        return [one_epoch(trainer, images, labels, [numbers(4)], 0.0) for _ in range(6)]

    ours, theirs = trainer_of(name, network, head), trainer_of(name, network, head)
    first = losses(our_epoch, ours)  # three of them before the recording
    assert len(set(first)) == 6
    assert losses(our_epoch, ours) == pytest.approx(first, rel=1e-4)
    assert losses(plain_epoch, theirs) == pytest.approx(first, rel=1e-4)
    small = trainer_of(name, network, head, 8)
    for _ in range(5):
        our_epoch(small, images, labels, [numbers(4)], 0.0)
    assert small.graph is None  # there was no full batch


@pytest.mark.parametrize("name, network, head", [CNN, VGG5])
def test_an_epoch_waits_for_the_device_only_at_its_end(monkeypatch, name, network, head):
    trainer, read = trainer_of(name, network, head), []
    images, labels = pictures(name, 19)
    batches = numbers(19).split(4)
    our_epoch(trainer, images, labels, batches, 0.01)  # the recording waits

    def reading(x) -> float:
        torch.cuda.set_sync_debug_mode("default")
        read.append(float(x))
        return read[-1]

    monkeypatch.setattr(load_script(name), "float", reading, raising=False)
    try:
        torch.cuda.set_sync_debug_mode("error")
        loss = our_epoch(trainer, images, labels, batches, 0.01)
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError):
            trainer.total.item()  # the guard itself
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert read == [pytest.approx(19 * loss)]


def arguments(folder, *more: str) -> list[str]:
    line = "--epochs 4 --batch-size 16 --device cuda --no-download --quiet"
    folders = ["--data-dir", str(folder / "data"), "--results-dir", str(folder / "results")]
    return [*line.split(), *more, *folders]


@pytest.mark.parametrize("network", ["cnn", "vgg5"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, network):
    script = load_script("MNIST/mnist")
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
        assert script.main(command) == 0
        (log,) = (tmp_path / way / "results" / "logs" / "mnist").iterdir()
        start, *lines, end = map(json.loads, log.read_text().splitlines())
        assert start["provenance"]["device"] == "cuda" and end["outcome"] == "finished"
        epochs[way] = [line for line in lines if line["event"] == "epoch"]
        assert len(lines) - len(epochs[way]) == (way == "interrupted")
    for ours, theirs in zip(epochs["interrupted"], epochs["whole"], strict=True):
        assert ours["learning_rate"] == pytest.approx(theirs["learning_rate"])
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=2e-2)
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=5e-2)


def test_precision_and_device(tmp_path):
    """fp32 leaves PyTorch's flags alone, ieee turns TF32 off; the log says what was read back."""
    write_data(tmp_path / "data", "MNIST/mnist")
    script = load_script("MNIST/mnist")
    last = f"cuda:{torch.cuda.device_count() - 1}"
    try:
        for precision in ("fp32", "ieee"):
            torch.backends.cudnn.allow_tf32 = True  # as PyTorch has it
            more = ["--head", "fc", "--epochs", "1", "--device", last, "--precision", precision]
            assert script.main([*arguments(tmp_path), *more]) == 0
            assert torch.backends.cudnn.allow_tf32 == (precision == "fp32")
            assert str(torch.device("cuda", torch.cuda.current_device())) == last
    finally:
        torch.cuda.set_device(0)
    found = {}
    for log in tmp_path.rglob("*.jsonl"):
        start = json.loads(log.read_text().splitlines()[0])
        found[start["settings"]["precision"]] = start["provenance"]
    assert found["fp32"]["cudnn_allow_tf32"] and not found["ieee"]["cudnn_allow_tf32"]
    assert not found["fp32"]["matmul_allow_tf32"]


def test_ieee_convolutions_are_fp32():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 64, 16, 32, dtype=torch.float64, generator=generator) + 1
    kernel = torch.rand(8, 64, 3, 3, dtype=torch.float64, generator=generator) + 1
    ours = nn.functional.conv2d(x.float().to(DEVICE), kernel.float().to(DEVICE)).cpu().double()
    assert float((ours / nn.functional.conv2d(x, kernel) - 1).abs().max()) < 1e-5  # TF32: 1e-4


@ALL
def test_evaluation_is_that_of_the_cpu(name, network, head):
    ours, theirs = trainer_of(name, network, head), trainer_of(name, network, head, device=CPU)
    loss, right = ours.evaluate(*pictures(name, 64))
    reference, expected = theirs.evaluate(*pictures(name, 64, CPU))
    assert loss == pytest.approx(reference, rel=1e-3)
    assert int((right.cpu() != expected).sum()) <= 1


AUGMENTED = [("MNIST/mnist", "vgg5"), ("MNIST/fashion_mnist", "vgg5"), ("CIFAR/cifar10", "cnn")]


@pytest.mark.parametrize("name, network", AUGMENTED)
def test_views_are_those_of_the_cpu(name, network):
    script = load_script(name)
    steps = script.recipe_of(network, "fc", "published").augmentation
    views = []
    for device in (DEVICE, CPU):
        images = pictures(name, 500, device)[0]
        views.append(script.augment(images, steps, torch.Generator().manual_seed(1)).cpu().int())
    different = (views[0] - views[1]).abs() > 1
    assert float(different.float().mean()) < 1e-3  # nearest pixels may be others


@pytest.mark.parametrize("name, network", [*AUGMENTED, ("CIFAR/cifar10", "densenet")])
def test_memory_of_an_epoch(name, network):
    """Views of a whole training set, and the evaluation of 10,000 images."""
    script = load_script(name)
    trainer, (images, labels) = trainer_of(name, network, "spinal"), pictures(name, 60_000)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    script.augment(images, trainer.recipe.augmentation, torch.Generator().manual_seed(1))
    assert torch.cuda.max_memory_allocated() - before < 2**30 + 2 * images.numel()
    torch.cuda.reset_peak_memory_stats()
    trainer.evaluate(images[:10_000], labels[:10_000])
    assert torch.cuda.max_memory_allocated() - before < 4 * 2**30


def train_with_a_step_that_waits(command: list[str]) -> int:
    """A step that waits for the device cannot be recorded."""
    script = load_script("MNIST/mnist")
    step = script.Trainer.step

    def waiting(self, images, labels):
        step(self, images, labels)
        self.total.item()

    script.Trainer.step = waiting
    try:
        return script.main(command)
    finally:
        script.Trainer.step = step


def test_a_failed_recording_ends_the_run_and_says_so(tmp_path):
    """In a process of its own: in PyTorch 2.11 the stream of the recording stays current."""
    write_data(tmp_path / "data", "MNIST/mnist", train=96)
    code = "import sys, test_cuda; sys.exit(test_cuda.train_with_a_step_that_waits(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments(tmp_path, "--head", "spinal")]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "captur" in done.stderr


# ---- Transfer -----------------------------------------------------------------------------------
TINY = "--network resnet18 --weights none --image-size 32 --batch-size 4 --no-download --quiet"


def transfer_part(folder) -> tuple:
    """The transfer script, the recipe of the Spinal head, this process and the data."""
    WRITERS["tl_hymenoptera"](folder)
    script = load_script("Transfer_Learning/tl_hymenoptera")
    line = [*TINY.split(), "--head", "spinal", "--workers", "0", "--device", str(DEVICE)]
    args = script.parse_arguments([*line, "--data-dir", str(folder)])
    process = script.this_process(args)
    (recipe,) = script.choose_recipes(args, process)
    data, _ = script.load_data(folder, recipe, False, True)
    return script, recipe, process, data


def test_a_group_of_one_process_trains_the_same_network(tmp_path, backend="nccl"):
    """DistributedDataParallel and synchronised batch norm over NCCL, in this process."""
    script, recipe, process, data = transfer_part(tmp_path)
    store = f"file://{tmp_path}/store"
    distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
    losses = []
    try:
        for wrapped in (False, True):
            torch.manual_seed(1)
            trainer = script.Trainer(script.network_of(recipe, False), recipe, process)
            if wrapped:
                trainer.network = nn.SyncBatchNorm.convert_sync_batchnorm(trainer.network)
                trainer.model = DistributedDataParallel(trainer.network)
            train = data["train"]
            train.draws = (0, "view", 1)
            losses.append(trainer.epoch(train, torch.arange(len(train)), 0.001, ""))
            losses.append(trainer.evaluate(data["test"], "")[0])
    finally:
        distributed.destroy_process_group()
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-3)


def test_views_leave_the_random_numbers_of_the_device_alone(tmp_path, monkeypatch):
    """Drawn in the process that trains: its masks on the GPU must not begin anew."""
    *_, data = transfer_part(tmp_path)
    data["train"].draws, seeds = (0, "view", 1), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    before = torch.cuda.get_rng_state()
    data["train"][0]
    assert torch.equal(torch.cuda.get_rng_state(), before) and seeds == []


def test_torchrun(tmp_path):
    """One process, and two where there are two GPUs: a step is that of one to rounding."""
    WRITERS["tl_hymenoptera"](tmp_path / "data")
    losses = []
    for processes in range(1, 1 + min(2, torch.cuda.device_count())):
        results = tmp_path / str(processes)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
        command += [str(ROOT / "Transfer_Learning/tl_hymenoptera.py"), *TINY.split()]
        command += ["--data-dir", str(tmp_path / "data"), "--results-dir", str(results)]
        command += ["--epochs", "2", "--workers", "1", "--device", "cuda", "--head", "spinal"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        (log,) = results.rglob("*.jsonl")
        start, *epochs, end = map(json.loads, log.read_text().splitlines())
        assert start["provenance"]["processes"] == processes and end["outcome"] == "finished"
        losses.append([line["train_loss"] for line in epochs])
    assert losses[-1] == pytest.approx(losses[0], rel=1e-2)
