"""Regression/universal_approximation.py: the SpinalNet written down equals the plain network."""

import pytest
import torch
from torch import nn

from conftest import load_script

theory = load_script("Regression/universal_approximation")
EQUAL = [("tanh", 1), ("sigmoid", 1), ("leaky_relu", 1), ("leaky_relu", 3)]
EQUAL += [("relu", splits) for splits in (1, 2, 7)]


def plain_network(features, neurons, activation):
    torch.manual_seed(0)
    shape = {"features": features, "width": neurons, "outputs": 2}
    return theory.build_network("mlp", "fc", **shape, activation=activation).double()


@pytest.mark.parametrize(("activation", "splits"), EQUAL)
def test_the_spinal_network_equals_the_plain_one(activation, splits):
    network = plain_network(7, 13, activation)
    spinal = theory.spinal_equal_of(network, activation, splits, bound=5.0)
    inputs = (torch.rand(2_000, 7, dtype=torch.float64) * 2 - 1) * 5
    assert [layer.out_features for layer in spinal[0].hidden] == [1] * 13 * splits
    assert theory.largest_difference(spinal, network, inputs)[0] < 1e-13
    hidden, places = theory.to_spinal(network[0], activation, splits, bound=5.0)
    expected = network[:2](inputs)
    torch.testing.assert_close(hidden(inputs)[:, places], expected, rtol=0, atol=1e-13)


def test_outside_the_bound_a_cut_input_may_differ():
    """The bound is no decoration: beyond it ReLU cuts partial sums off."""
    network = plain_network(4, 20, "relu")
    spinal = theory.spinal_equal_of(network, "relu", 2, bound=0.5)
    inputs = torch.randn(2_000, 4, dtype=torch.float64) * 50
    assert theory.largest_difference(spinal, network, inputs)[0] > 0.1


def test_each_layer_depends_on_its_part_and_on_the_sum_handed_on():
    network = plain_network(6, 2, "relu")
    hidden, places = theory.to_spinal(network[0], "relu", 3, bound=2.0)
    x = torch.rand(1, 6, dtype=torch.float64, requires_grad=True)
    outputs = hidden(x)
    # Layer 3 is the first one of the second neuron.
    for layer, reached in ((0, {0, 1}), (1, {0, 1, 2, 3}), (3, {0, 1})):
        (gradient,) = torch.autograd.grad(outputs[0, layer], x, retain_graph=True)
        assert set(gradient[0].nonzero().flatten().tolist()) == reached
    assert places.tolist() == [2, 5]


REFUSED = {"hands no sum on": ("tanh", 2, 1.0), "bound": ("relu", 2, None)}
REFUSED |= {"9 parts": ("relu", 9, 1.0), "gelu": ("gelu", 1, None)}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_built_is_refused(words):
    with pytest.raises(ValueError, match=words):
        theory.to_spinal(nn.Linear(4, 3), *REFUSED[words])


def test_interpolation_meets_the_function_at_its_knots_and_converges():
    errors = []
    for neurons in (8, 16, 32):
        network = theory.interpolating(neurons)
        knots = torch.linspace(theory.LEFT, theory.RIGHT, neurons + 1, dtype=torch.float64)[:, None]
        grid = torch.linspace(theory.LEFT, theory.RIGHT, 2_001, dtype=torch.float64)[:, None]
        with torch.no_grad():
            torch.testing.assert_close(network(knots), theory.target(knots), rtol=0, atol=1e-12)
            errors.append(float((network(grid) - theory.target(grid)).abs().max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]  # quadratic: a fourth with each doubling


def test_the_command_prints_rounding_and_draws(tmp_path, capsys):
    assert theory.main(["--neurons", "10", "--results-dir", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "float" in line]
    assert len(lines) == 8
    for line in lines:
        assert float(line[5]) < (1e-12 if line[3] == "float64" else 1e-4)
    assert [line[6] for line in lines] == ["90"] * 8
    assert [line[7] for line in lines[::2]] == ["99", "99", "119", "159"]
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".png"}


MISTAKES = ["--activation tanh --splits 2", "--splits 9", "--neurons 0", "--bound nan"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(tmp_path, capsys, mistake):
    try:
        code = theory.main([*mistake.split(), "--results-dir", str(tmp_path)])
    except SystemExit as end:  # argparse's own
        code = end.code
    assert code == 2 and "error: " in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
