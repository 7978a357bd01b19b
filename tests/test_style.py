"""The style of scripts, tools, report and tests: what ruff measures, and what a reader notices."""

import ast
import io
import subprocess
import sys
import tokenize

import pytest

from conftest import ROOT

MOST = {"MNIST": 7_000, "EMNIST": 7_000, "CIFAR": 8_000, "Regression": 5_500}
MOST["Transfer_Learning"] = 7_600  # tokens
SCRIPTS = sorted(path for folder in MOST for path in (ROOT / folder).glob("*.py"))
OTHERS = [path for folder in ("tools", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
SILENT.add(tokenize.ENDMARKER)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def name(path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_has_nothing_to_say(command):
    full = [sys.executable, "-m", "ruff", *command.split(), "."]
    done = subprocess.run(full, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_functions_fit_a_screen():
    long = []
    for path in SCRIPTS + OTHERS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 50:
                long.append(f"{name(path)}: {node.name}, {node.end_lineno - node.lineno + 1} lines")
    assert not long


def docstrings(tree: ast.AST) -> set[tuple[int, int]]:
    found = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            found.add((body[0].lineno, body[0].col_offset))
    return found


def count_tokens(text: str) -> int:
    """Without comments, docstrings, line ends and indents; an f-string is one, as before 3.12."""
    silent = docstrings(ast.parse(text))
    count = depth = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_END":
            depth -= 1
        elif not depth and token.type not in SILENT and token.start not in silent:
            count += 1
        if kind == "FSTRING_START":
            depth += 1
    return count


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_are_plain(path):
    """No lambda, no assert, no comprehension in another, no silenced rule; tokens within bounds."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Lambda | ast.Assert), node.lineno
        if isinstance(node, COMPREHENSIONS):
            inner = [other for other in ast.walk(node) if isinstance(other, COMPREHENSIONS)]
            assert len(inner) == 1, node.lineno
    for word in ("noqa", "globals()", "TODO", "NotImplementedError", "spec "):
        assert word not in text
    assert count_tokens(text) <= MOST[path.parent.name]


def names_in(tree: ast.AST, name: str) -> list[str]:
    """The fields of the class of this name."""
    (found,) = (x for x in ast.walk(tree) if isinstance(x, ast.ClassDef) and x.name == name)
    return [line.target.id for line in found.body if isinstance(line, ast.AnnAssign)]


def test_recipes_of_image_scripts_have_the_same_fields():
    """What is logged as settings, and in which order."""
    wanted = names_in(ast.parse((ROOT / "MNIST/mnist.py").read_text()), "Recipe")
    assert wanted[:4] == ["mean", "std", "augmentation", "network"] and len(wanted) == 21
    for path in SCRIPTS:
        if path.parent.name in ("MNIST", "EMNIST", "CIFAR"):
            found = names_in(ast.parse(path.read_text()), "Recipe")
            assert [x for x in found if x in wanted] == wanted, path
            assert found == wanted or path.parent.name == "CIFAR", path


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_imports_no_other(path):
    """Only the standard library and what its own first lines name."""
    text = path.read_text(encoding="utf-8")
    packages = text.split("dependencies = [", 1)[1].split("]", 1)[0].replace("#", "").split(",")
    allowed = {package.split(">")[0].strip(' "\n').lower() for package in packages}
    allowed |= {"sklearn"} if "scikit-learn" in allowed else set()
    allowed |= {"PIL"} if "pillow" in allowed else set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        foreign = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
        assert foreign <= allowed
