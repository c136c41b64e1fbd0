"""Rules of the house that a linter does not know: docstrings, functions that fit a screen, Linux's names for pages."""

import ast
import collections
import functools
import pathlib

PACKAGE = pathlib.Path(__file__).parents[2] / "numaemu"
COMPILED = {"kernel", "hot", "entry", "callback", "library"}
SHORT = 5  # lines, from `def` on: what does no more than its name says
LONG = 60  # lines, likewise: more than that does not fit a screen


@functools.cache
def files():
    """{path in the package: syntax tree} of every file."""
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def functions(tree, inside=False):
    """(function, True if it is a part of another function or of a class with a leading underscore) of a file."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield node, inside
            yield from functions(node, True)
        else:
            private = isinstance(node, ast.ClassDef) and node.name.startswith("_")
            yield from functions(node, inside or private)


def is_compiled(function):
    """True if it carries one of the decorators of compiler/decorators.py."""
    decorators = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return any(isinstance(d, ast.Name) and d.id in COMPILED for d in decorators)


def length(function):
    """Lines from `def` on, without the docstring."""
    first = function.body[0]
    told = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) is not None else 0
    return function.end_lineno - function.lineno + 1 - told


def undocumented(tree):
    """Functions without a docstring that need one: compiled ones and public ones, unless they are short."""
    return [
        f"line {function.lineno}: {function.name}"
        for function, inside in functions(tree)
        if length(function) > SHORT
        and ast.get_docstring(function) is None
        and (is_compiled(function) or not inside and not function.name.startswith("_"))
    ]


def bare_pages(tree):
    """Lines that shift something by 12, or mask it with 4095, as if this were no page."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp)
        and not isinstance(node.left, ast.Constant)
        and any(
            isinstance(part, ast.Constant)
            and part.value in ((12,) if isinstance(node.op, (ast.LShift, ast.RShift)) else (4095,))
            and not isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod))
            for part in ast.walk(node.right)
        )
    ]


def breaches(rule, folder=""):
    """{file: lines that break a rule} of the files of a folder."""
    found = {name: rule(tree) for name, tree in files().items() if name.startswith(folder)}
    return {name: lines for name, lines in found.items() if lines}


def too_long(tree):
    """Functions that do not fit a screen."""
    return [f"line {f.lineno}: {f.name}, {length(f)} lines" for f, _ in functions(tree) if length(f) > LONG]


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them by name alone, whatever room they lie in: of two with one name the second is not run."""
    names = collections.Counter(path.name for path in pathlib.Path(__file__).parents[1].rglob("*.py"))
    assert [name for name, number in names.items() if number > 1 and name not in ("__init__.py", "conftest.py")] == []


def test_every_file_says_what_it_is():
    assert [name for name, tree in files().items() if not ast.get_docstring(tree)] == []


def test_every_function_of_some_lines_says_what_it_does():
    assert breaches(undocumented) == {}


def test_every_function_fits_a_screen():
    assert breaches(too_long) == {}


def test_pages_have_linux_names():
    """PAGE_SIZE, PAGE_SHIFT and PAGE_MASK: kernel/include/mm.py says which goes with what."""
    assert breaches(bare_pages, "kernel/") == {}


def test_the_rules_find_what_breaks_them():
    tree = ast.parse(
        "@kernel('void()')\ndef _f(a):\n    a = 1\n    a = 2\n    a = 3\n    a = 4\n    return a\n"
        "def g(a):\n    return a >> 12\n"
        "class _C:\n    def h(self, a):\n        a = 1\n        a = 2\n        a = 3\n        a = 4\n        return a & ~U(4095)\n"
    )
    assert undocumented(tree) == ["line 2: _f"]
    assert bare_pages(tree) == ["line 9: a >> 12", "line 16: a & ~U(4095)"]
    assert too_long(ast.parse("def f(a):\n" + "    a = 1\n" * 60)) == ["line 1: f, 61 lines"]
