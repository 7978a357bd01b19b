"""tools/same_numbers.py: it sees a change of numbers and a run that does not go on as it was."""

import subprocess
import sys

import pytest

from conftest import ROOT, load_script

sys.path.insert(0, str(ROOT / "tools"))
import same_numbers  # noqa: E402

RESUMED = '        self.trainer.network.load_state_dict(saved["network"])\n'
CHANGES = {  # of the text of mnist.py, and what is said about it
    "a comment": ("# ---- Facts of", "# ---- The facts of", ""),
    "a number": ("momentum: float = 0.5", "momentum: float = 0.6", "epoch 1 train_loss: "),
    "resumption": (RESUMED, "", "epoch 2 train_loss: "),
    "a failure": ("selection: str", "selektion: str", "failed: "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_text(tmp_path, monkeypatch, change):
    before, after, said = CHANGES[change]
    text = (ROOT / "MNIST/mnist.py").read_text()
    assert before in text
    for name, content in (("base", text), ("present", text.replace(before, after))):
        (tmp_path / name / "MNIST").mkdir(parents=True)
        (tmp_path / name / "MNIST/mnist.py").write_text(content)
    commands = same_numbers.commands_of
    chosen = [x for x in commands(load_script("MNIST/mnist")) if "cnn --head fc" in x][:1]
    monkeypatch.setattr(same_numbers, "commands_of", lambda script: chosen)
    monkeypatch.setattr(same_numbers.made_up_data, "accept_any_content", list)
    result = same_numbers.compare_script((tmp_path, "MNIST/mnist", None))
    assert result.runs == 1 and result.note == ""
    assert [text.startswith(said) for text in result.differ.values()] == [True] * bool(said)


def repository(folder, text: str) -> None:
    """A repository with one script, which prints numbers."""
    (folder / "Regression").mkdir(parents=True)
    (folder / "Regression/universal_approximation.py").write_text(text)
    for group in same_numbers.FOLDERS:
        (folder / group).mkdir(exist_ok=True)
        (folder / group / "README").write_text("git keeps no empty folder")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "base"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    text = "def main(argv):\n    print('error', 0.25, 'of 8')\n    return 0\n"
    repository(tmp_path, text)
    monkeypatch.setattr(same_numbers, "ROOT", tmp_path)
    page = tmp_path / "same_numbers.md"
    assert same_numbers.main(["--output", str(page)]) == 0
    assert (
        "| Regression/universal_approximation.py | 1 | 1 | 0 | the same text |" in page.read_text()
    )
    script = tmp_path / "Regression/universal_approximation.py"
    script.write_text(text.replace("0.25", "0.125"))
    assert same_numbers.main(["HEAD", "--output", str(page)]) == 1
    assert "1 runs: 0 equal, 0 different as expected, 1 different." in page.read_text()
    assert "number 1: 0.25, now 0.125" in page.read_text()
    for mistake in (["nonsense"], ["--scripts", "nonsense"]):
        with pytest.raises(SystemExit) as end:
            same_numbers.main(mistake)
        assert end.value.code == 2 and "nonsense" in capsys.readouterr().err


def test_what_was_expected_is_no_failure():
    result = same_numbers.Result("CIFAR/cifar10")
    result.add("--network densenet --head fc", "end epochs: 1, now 2")
    result.add("--network lenet --head fc", "")
    assert not result.differ and result.row().startswith(
        "| CIFAR/cifar10.py | 2 | 1 | 1 | densenet"
    )


# tl_folder has no rows: its networks are the user's choice.
OTHERS = ("Regression", "Transfer_Learning/tl_folder")
IMAGES = [x for x in same_numbers.names_of_scripts(ROOT) if not x.startswith(OTHERS)]


@pytest.mark.parametrize("name", IMAGES)
def test_every_network_head_and_protocol_is_run(name):
    script = load_script(name)
    found = set()
    for command in same_numbers.commands_of(script):
        words = command.split()
        values = [words[words.index(key) + 1] for key in ("--network", "--head", "--protocol")]
        found.add(tuple(values))
    for network in script.NETWORKS:
        for head in script.HEADS:
            assert {(network, head, x) for x in ("published", "corrected")} <= found
