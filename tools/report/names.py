"""Names that the whole report shares."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
REFERENCE = RESULTS / "reference"
NOISE_VARIANCE = 0.04 / 12  # of 0.2 * uniform[0, 1), Table I
FUNCTIONS = {
    "sum": "sum",
    "sinsum": "sine of sum",
    "product": "product",
    "sinproduct": "sine of product",
}
NETWORKS = {
    "cnn": "CNN",
    "vgg5": "VGG-5",
    "vgg11": "VGG-11",
    "vgg13": "VGG-13",
    "vgg16": "VGG-16",
    "vgg19": "VGG-19",
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "lenet": "CNN (tutorial)",
    "densenet": "DenseNet",
    "vgg19_bn": "VGG-19_bn",
    "wide_resnet101_2": "Wide_ResNet-101_2",
    "mlp": "MLP",
}
SMALL_CNN = (  # scripts whose `cnn` has dropout 0.5 in the FC head alone, as released
    "mnist",
    "fashion_mnist",
    "kmnist",
    "qmnist",
    "emnist_digits",
    "emnist_letters",
    "emnist_balanced",
    "optdigits",
)
SCRIPT_ORDER = (*SMALL_CNN[:-1], "cifar10", "cifar100")
FOLDERS = ("MNIST", "EMNIST", "CIFAR", "Regression", "Transfer_Learning")


class UserError(Exception):
    """Something the user can mend; printed as one sentence, exit status 2."""


def script_order(script: str) -> tuple[bool, int, str]:
    """Sets from scratch in the paper's order, then the transfer scripts by name."""
    place = SCRIPT_ORDER.index(script) if script in SCRIPT_ORDER else len(SCRIPT_ORDER)
    return script.startswith("tl_"), place, script


def network_name(network: str) -> str:
    """As the paper writes it, if it does."""
    return NETWORKS.get(network, network)


def script_path(script: str) -> Path:
    """Where the script of this name lies, relative to the collection."""
    paths = [Path(folder, f"{script}.py") for folder in FOLDERS]
    return next((path for path in paths if (ROOT / path).is_file()), Path(f"{script}.py"))
