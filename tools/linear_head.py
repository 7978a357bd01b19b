"""The small CNN without a hidden layer in its head: its 320 features go straight to the outputs.

    python tools/linear_head.py MNIST/mnist.py --protocol corrected --runs 10

Takes the options of the script but for --head. Neither the paper nor the released code has this
head; it shows what a hidden layer is good for. The script is used as it is: its trunk, training and
log; only the head is exchanged, and the log says so (head `linear`, `changed_by` in its start).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

from torch import nn

from bench import load_script

SCRIPTS = ["MNIST/mnist.py", "MNIST/fashion_mnist.py", "MNIST/kmnist.py", "MNIST/qmnist.py"]
FEATURES = 320  # of the small CNN's trunk


def exchange_head(script: ModuleType) -> None:
    """Makes the module of an image script train this head, and no other one."""
    row = script.RECIPES["cnn", "fc"]
    # The output layer of an FC head as wide as the trunk sees 320 numbers.
    script.RECIPES["cnn", "linear"] = replace(row, head="linear", width=FEATURES)
    script.HEADS = ["linear"]
    network_of, provenance = script.network_of, script.provenance

    def linear_network(recipe) -> nn.Module:
        """Trunk, dropout, output layer, log-softmax; the trunk has the weights of any head's."""
        network = network_of(replace(recipe, head="fc"))
        network[1][0] = nn.Identity()
        return network

    script.network_of = linear_network
    script.head_name = lambda recipe: recipe.head
    script.provenance = lambda device: provenance(device) | {"changed_by": "tools/linear_head.py"}


def main(argv: list[str]) -> int:
    """Exit status: that of the script."""
    if not argv or argv[0] not in SCRIPTS:
        print(f"error: name one of {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    script = load_script(argv[0].removesuffix(".py"))
    exchange_head(script)
    return script.main([*argv[1:], "--head", "linear"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
