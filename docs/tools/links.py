"""Looks at what pages refer to: links and their anchors, pictures, paths and names of the source.

    python -m docs.tools.links         says what is wrong; the exit status is 1 then

In code, `kernel/arch/tlb.py: shoot_down, acknowledge` means functions (or classes, or assignments) of a file. Paths are relative to
the repository, to numaemu/, or to numaemu/kernel/mm/.
"""

import ast
import functools
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[2]
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")
SOURCE = re.compile(r"([\w/.-]+/[\w.-]+\.py)(?:: (\w+(?:, \w+)*))?")
OBJECT = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
PLACES = ("", "numaemu", "numaemu/kernel/mm")


def pages():
    """All pages of the project."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@functools.cache
def anchors(path):
    """The anchors of a page's headings, as Markdown makes them."""
    found = set()
    for heading in HEADING.findall(FENCE.sub("", path.read_text())):
        text = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]|\]\([^)]*\)", "", heading)).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", text))
    return found


def link_faults(path, target):
    """What is wrong with a link, or nothing."""
    if re.match(r"[a-z]+:", target):
        return
    file, _, anchor = target.partition("#")
    place = (path.parent / file).resolve() if file else path
    if not place.exists():
        yield f"{target} is not there"
    elif anchor and anchor not in anchors(place):
        yield f"{target}: no such heading"


@functools.cache
def names_of(path):
    """What a source file defines anywhere: functions, classes, assigned names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def source_faults(text):
    """What is wrong with a path of the source, or nothing."""
    match = SOURCE.fullmatch(text)
    if match is None:
        return
    found = [path for place in PLACES if (path := ROOT / place / match[1]).is_file()]
    if not found:
        yield f"{match[1]} is not there"
    for name in match[2].split(", ") if found and match[2] else ():
        if name not in names_of(found[0]):
            yield f"{match[1]} has no {name}"


def object_faults(name):
    """What is wrong with the name of an object whose docstrings a page shows (`::: numaemu.machine.Machine`), or nothing."""
    module = ROOT / (name.replace(".", "/") + ".py")
    if module.is_file():
        return
    module, _, thing = name.rpartition(".")
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.is_file() or thing not in names_of(path):
        yield f"{name} is not there"


def faults():
    """Everything that is wrong, a line each."""
    for path in pages():
        text, name = FENCE.sub("", path.read_text()), path.relative_to(ROOT)
        for target in LINK.findall(CODE.sub("", text)):
            yield from (f"{name}: {fault}" for fault in link_faults(path, target))
        for thing in OBJECT.findall(text):
            yield from (f"{name}: {fault}" for fault in object_faults(thing))
        for code in CODE.findall(text):
            yield from (f"{name}: {fault}" for fault in source_faults(code))


def main():
    found = list(faults())
    print("\n".join(found) if found else "all links and names are there")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
