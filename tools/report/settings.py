"""One form for the settings and the data of logs of all schemas, so that equal experiments meet.

Runs are compared by these settings, never by the names of their files: the `corrected` small CNN
of schema 2 has dropout 0.5 in both heads, that of schema 3 has none.
"""

import json
from typing import Any

HEAD_KEYS = ("head", "layers", "width", "fc_dropout", "flavour", "head_ignored")  # of one head
HEAD_KEYS += ("rate_rule", "train_mode_epochs")  # released CIFAR scripts differ in these, too
VERIFIED = {  # content hashes of official sets that logs before schema 3 could not call verified
    "06b0d1f124c4e5fa",  # MNIST
    "ca3ab2a37f845e1b",  # Fashion-MNIST
    "32e5966899bde482",  # CIFAR-10
    "8094c640e96e98aa",  # Hymenoptera
}
SAME_IMAGES = {  # schema 2 hashed the labels of corrected runs less 1, schema 3 hashes them as read
    "dd8f9a0d0745f4fc": "f1d8a8caaf1d658b",  # our part of EMNIST letters
}
STEPS = "x0.1 every 7 epochs of a stage"  # the only rule of the transfer scripts
SCHEMA_1 = {"classes": 10, "first_label": 0, "heldout": 0}  # what its logs leave out
RATE_RULES = {  # words of schemas 1 and 2
    ("fc", "1*lr*U^3 if not improved after epoch 0"): "lr U^3 if not improved",
    ("spinal", "1*lr*U^3 if not improved after epoch 0"): "lr U^3 if not improved",
    ("fc", "fc: a third after 2 and from 22 on; spinal: constant"): (
        "a third after epoch 2 and from 22 on"
    ),
    ("spinal", "fc: a third after 2 and from 22 on; spinal: constant"): "constant",
}


def canonical(value: Any) -> str:
    """Text that is equal for equal JSON values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def transfer_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a transfer script: stages as (factor of the rate, end as a part of the epochs)."""
    if settings.get("optimizer") == "SGD momentum 0.9":  # schema 2: (first rate, epochs)
        stages, ended = [], 0
        for rate, epochs in settings["stages"]:
            ended += epochs
            stages.append([rate / settings["learning_rate"], ended / settings["epochs"]])
        settings = {"fc_dropout": 0.0, "heldout": 0} | settings
        settings |= {"stages": stages, "momentum": 0.9, "best_of_stage": False}
    if len(settings["stages"]) == 1:
        settings.pop("best_of_stage", None)  # it is the best of all
    if settings.get("batch_norm_images") == settings["batch_size"]:
        settings.pop("batch_norm_images")  # a whole batch
    return settings | {"optimizer": "SGD"}


def common_settings(start: dict[str, Any]) -> dict[str, Any]:
    """The settings of a checked start line, as schema 3 writes them."""
    settings = dict(start["settings"])
    if start["schema"] == 1:
        settings = SCHEMA_1 | settings
        for key in ("mean", "std"):
            if isinstance(settings.get(key), float):
                settings[key] = [settings[key]]
    rule = settings.get("rate_rule", STEPS)
    settings["rate_rule"] = RATE_RULES.get((settings["head"], str(rule)), rule)
    if "stages" in settings:
        settings = transfer_settings(settings)
    if settings["optimizer"] != "SGD":
        settings.pop("momentum", None)  # no other optimiser has one
    return {key: value for key, value in settings.items() if value is not None}


def data_key(sha256: str) -> str:
    """The content hash, the same for the same images and labels."""
    return SAME_IMAGES.get(sha256, sha256)


def is_tabular(settings: dict[str, Any]) -> bool:
    """A regression on a table of somebody's own (Regression/tabular.py)."""
    return settings.get("task") == "tabular"


def is_regression(settings: dict[str, Any]) -> bool:
    """Whether a run is measured by an error: Table I and tables of one's own."""
    if settings["selection"] == "minimum" or settings["dataset"] == "synthetic":
        return True
    return is_tabular(settings)
