"""Facts and thresholds that the whole report shares."""
from __future__ import annotations

NOISE_VARIANCE = 0.04 / 12  # of 0.2 * uniform[0, 1), Table I
PAPER_RUNS = 10  # "average of ten runs", Table II
PAPER_ROUNDING = 0.005  # averages are printed with two decimals
FEWEST_RUNS = 3  # for a verdict on accuracies
FEWEST_SEEDS = 5  # for a verdict on Table I, whose numbers are of one seed (Q9)
CONFIDENCE = 0.95
FUNCTIONS = {"sum": "sum", "sinsum": "sine of sum", "product": "product", "sinproduct": "sine of product"}
NETWORKS = {"cnn": "CNN", "vgg5": "VGG-5", "vgg11": "VGG-11", "vgg13": "VGG-13", "vgg16": "VGG-16", "vgg19": "VGG-19",
            "resnet18": "ResNet-18", "resnet34": "ResNet-34", "lenet": "CNN (tutorial)", "densenet": "DenseNet", "vgg19_bn": "VGG-19_bn",
            "wide_resnet101_2": "Wide_ResNet-101_2", "mlp": "MLP"}
SCRIPT_ORDER = ("mnist", "fashion_mnist", "kmnist", "qmnist", "emnist_digits", "emnist_letters", "emnist_balanced", "cifar10",
                "cifar100")  # of panels
FOLDERS = {"emnist": "EMNIST", "cifar10": "CIFAR", "cifar100": "CIFAR", "synthetic": "Regression", "tl": "Transfer_Learning"}
PAPER_COLUMNS = {"table", "dataset", "script", "network", "head", "layers", "width", "function", "metric", "value", "epochs"}
HEAD_KEYS = {"head", "layers", "width", "fc_dropout", "flavour"}  # settings that belong to a head: published heads differ in dropout


class UserError(Exception):
    """Something the user can mend; printed as one sentence, exit status 2."""
