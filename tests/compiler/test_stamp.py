"""What a compiled function depends on: its text and the faces of the files below; tried on a package of three files."""

import pathlib

import pytest

import numaemu
from numaemu.compiler.library import library_stamp
from numaemu.compiler.stamp import function_stamps, holds_compiled_code, imported, reached, split

LOW = '''"""Text."""
from numaemu.compiler.decorators import hot, kernel

LIMIT = 3


@hot
def inlined(a):
    return a + LIMIT


@kernel("i64(i64)")
def below(a):
    """Docstring."""

    return a        # body of below


@kernel("i64(i64,"
        "    i64)")
def wide(a,
         b):
    return a + b
LAST = 1
'''
HIGH = """from numaemu.low import (below,
                         inlined)

@kernel("i64(i64)")
def above(a):
    return below(a) + inlined(a)

def maker():
    @entry("i64()")
    def nested():
        return 1
    return nested
"""


@pytest.fixture
def package(tmp_path):
    where = tmp_path / "numaemu"
    where.mkdir()
    (where / "low.py").write_text(LOW)
    (where / "high.py").write_text(HIGH)
    (where / "apart.py").write_text('@kernel("i64()")\ndef alone():\n    return 1\n')
    return where


def changed(package, file, old, new):
    """The functions whose stamps a change of a file changes, which must change it."""
    path = package / file
    before, text = function_stamps(package), path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    after = function_stamps(package)
    path.write_text(text)
    return {symbol.partition(".")[2] for symbol in before if before[symbol] != after.get(symbol)}


def test_a_file_is_its_face_and_its_functions():
    face, bodies = split(LOW)
    assert (
        set(bodies) == {"below", "wide"}
        and "body of below" in bodies["below"]
        and bodies["wide"] == "    return a + b\n"
    )
    assert "return a + LIMIT" in face and "def below(a):" in face and "LAST = 1" in face and "return a + b" not in face


def test_a_change_concerns_who_depends_on_it(package):
    assert changed(package, "low.py", "body of below", "other body") == {"low.below"}
    assert changed(package, "low.py", "return a + b", "return a - b") == {"low.wide"}
    everybody = {"low.below", "low.wide", "high.above"}
    for old, new in (
        ("a + LIMIT", "a - LIMIT"),
        ("LIMIT = 3", "LIMIT = 4"),
        ("LAST = 1", "LAST = 2"),
        ('"    i64)"', '"    u64)"'),
    ):
        assert changed(package, "low.py", old, new) == everybody
    assert changed(package, "high.py", "below(a) +", "below(a) -") == {"high.above"}
    assert changed(package, "high.py", "return 1", "return 2") == {"high.above"}  # a face: a function made by another
    assert changed(package, "apart.py", "return 1", "return 2") == {"apart.alone"}


def test_imports_are_found_anywhere_but_in_text():
    modules = {f"numaemu.{name}" for name in ("a", "b", "c", "d", "e", "f")}
    text = """# from numaemu import a
from numaemu import (b,
    c)
def f():
\tfrom numaemu.d import x
    import numaemu.e, sys
'see from numaemu import f'
"""
    assert imported(text, modules) == {"numaemu.b", "numaemu.c", "numaemu.d", "numaemu.e"}


@pytest.mark.parametrize("text, holds", [
    ('@kernel("i64()")\ndef f():\n', True), ("x = 1\n@hot\ndef f():\n", True), ("node_t = Struct([])", True), ("x\nnode_t = Struct([])", True),
    ("# @kernel\n", False), ("    @hot\n", False), ("@kernels\n", False), ("the = Struct", False), ("x.y = Struct(", False),
])  # fmt: skip
def test_which_files_hold_compiled_code(text, holds):
    assert holds_compiled_code(text) is holds


def test_comments_of_a_face_concern_nobody(package):
    assert changed(package, "low.py", "LAST = 1\n", "# more\nLAST = 1\n") == set()


def test_each_file_imports_the_structs_that_its_signatures_name():
    """A signature finds a struct by its name: a file that had not imported it would not notice its change."""
    package = pathlib.Path(numaemu.__file__).parent
    texts = {
        ".".join((package.name, *path.relative_to(package).with_suffix("").parts)): path.read_text()
        for path in package.rglob("*.py")
    }
    imports = {module: imported(text, texts.keys()) for module, text in texts.items()}
    home = {
        line.split()[0]: module for module, text in texts.items() for line in text.splitlines() if " = Struct(" in line
    }
    assert len(home) > 40
    for module, text in texts.items():
        below = reached(module, imports)
        for line in text.splitlines():
            if line.startswith(("@kernel(", "@entry(", "@callback(")):
                named = {
                    word.rstrip("*")
                    for word in line.replace("(", " ").replace(",", " ").replace(")", " ").replace('"', " ").split()
                    if word.endswith("*")
                }
                assert all(home[name] in below for name in named & home.keys()), (module, line)


def test_a_library_depends_on_libraries_and_on_faces():
    """A caller has the machine code of a library's function in its own; a function of the kernel it only calls."""
    top = "from numaemu import low\nfrom numaemu.below import deep\n@library\ndef top():\n    return 1\n"
    texts = {
        "numaemu.top": top,
        "numaemu.below": "@library\ndef deep():\n    return 2\n",
        "numaemu.low": LOW,
        "numaemu.other": "@library\ndef other():\n    return 3\n",
    }
    imports = {module: imported(text, texts.keys()) for module, text in texts.items()}

    def stamp(**changes):
        return library_stamp("numaemu.top", {**texts, **{f"numaemu.{k}": v for k, v in changes.items()}}, imports)

    assert stamp(other="") == stamp(low=LOW.replace("body of below", "another body")) == stamp()
    changed = [stamp(top=top + " "), stamp(below="@library\n"), stamp(low=LOW.replace("a + LIMIT", "a"))]
    assert len({stamp(), *changed}) == 4
