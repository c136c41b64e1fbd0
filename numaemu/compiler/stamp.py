"""What the machine code of a function depends on, as a hash, so that an image can take over what a change leaves as it is.

Compiled functions call each other through symbols, so a caller knows the signature of what it calls and nothing of its body.
A function therefore depends on its own text, and on the *face* of its file and of every file that this one imports, directly
or not: all of the text but comments and the bodies of functions that are compiled by themselves. What is inlined, constants
and structs are part of the face.
"""

import hashlib
import os
import re

_BY_ITSELF = re.compile(r"@(kernel|entry|callback)\b")
_COMPILED = re.compile(r"@(kernel|entry|callback|hot|intrinsic|overload)\b")
_STRUCT = re.compile(r"^\w+ = Struct\(", re.M)
# Patterns that begin with plain letters are found several times as fast as those that begin with a choice.
_FROM = re.compile(r"from (numaemu[\w.]*) import (\([^)]*\)|[^\n]*)")
_IMPORT = re.compile(r"import (numaemu[\w.]*)")
_WORD = re.compile(r"\w+")


def split(text):
    """(face, {name: body}) of a file: what others may depend on, and the functions that are compiled by themselves."""
    face, bodies = [], {}
    body = None  # that of the function which these lines belong to
    decorated = header = False  # after its decorator; before the end of its signature
    for line in text.splitlines(keepends=True):
        if line[0] not in " \t\n)":  # a new thing at the margin
            body, header = None, decorated and line.startswith("def ")
            decorated = bool(_BY_ITSELF.match(line)) or decorated and line[0] == "@"
            if header:
                body = bodies[line[4 : line.index("(")]] = []
        if body is not None and not header:
            body.append(line)
            continue
        if not line.lstrip().startswith("#"):
            face.append(line)
        if header and line.rstrip().endswith(":"):
            header = False
    return "".join(face), {name: "".join(lines) for name, lines in bodies.items()}


def imported(text, modules):
    """Those of `modules` that a file imports anywhere."""
    found = set()
    for match in _FROM.finditer(text):
        if begins_its_line(match, text):
            package, names = match.groups()
            found.add(package)
            found.update(f"{package}.{name}" for name in _WORD.findall(names))
    for match in _IMPORT.finditer(text):
        if begins_its_line(match, text):
            found.add(match[1])
    return found & modules


def begins_its_line(match, text):
    """True if only blanks stand before a match in its line."""
    start = match.start()
    return not text[text.rfind("\n", 0, start) + 1 : start].strip(" \t")


def holds_compiled_code(text):
    """True of a file with a function that is compiled, or with a struct."""
    return any(start == 0 or text[start - 1] == "\n" for start in map(re.Match.start, _COMPILED.finditer(text))) or (
        " = Struct(" in text and _STRUCT.search(text) is not None
    )


def source_texts(package):
    """{module: text} of every file of a package (its directory)."""
    return dict(sorted(_texts_below(os.fspath(package), os.path.basename(package))))


def _texts_below(folder, name):
    """(module, text) of every file in a directory, the package of that name, and below it."""
    for entry in os.scandir(folder):
        if entry.name.endswith(".py"):
            with open(entry.path, encoding="utf-8") as file:
                yield f"{name}.{entry.name[:-3]}", file.read()
        elif entry.name != "__pycache__" and entry.is_dir():
            yield from _texts_below(entry.path, f"{name}.{entry.name}")


def sources_of_compiled_code(package):
    """{module: text} of the files that compiled code may come from: those that hold some of it, and all that these import."""
    texts = source_texts(package)
    found, new = set(), [module for module, text in texts.items() if holds_compiled_code(text)]
    while new:
        if (module := new.pop()) not in found:
            found.add(module)
            new += imported(texts[module], texts.keys())
    return {module: texts[module] for module in found}


def function_stamps(package):
    """{symbol: stamp} of the functions of a package (its directory) that are compiled by themselves."""
    texts = source_texts(package)
    parts = {module: split(text) for module, text in texts.items()}
    faces = {module: hashlib.sha256(face.encode()).digest() for module, (face, _) in parts.items()}
    imports = {module: imported(text, texts.keys()) for module, text in texts.items()}
    stamps = {}
    for module, (_, bodies) in parts.items():
        below = b"".join(faces[name] for name in sorted(reached(module, imports)))
        for name, body in bodies.items():
            stamps[f"{module}.{name}"] = hashlib.sha256(below + name.encode() + body.encode()).hexdigest()
    return stamps


def reached(module, imports):
    """A file, what it imports, and so on."""
    found, new = set(), [module]
    while new:
        if (name := new.pop()) not in found:
            found.add(name)
            new += imports[name]
    return found
