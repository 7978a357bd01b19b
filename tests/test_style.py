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
    silent = docstrings(tree)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    count = sum(token.type not in SILENT and token.start not in silent for token in tokens)
    assert count <= MOST[path.parent.name]
