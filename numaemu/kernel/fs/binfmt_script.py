"""What a script says about who runs it: Linux's fs/binfmt_script.c."""

import errno

from numaemu.kernel.fs.binfmt_elf import BINPRM_BUF_SIZE, refused

SPACES, ENDS = b" \t", b" \t\0"
MOST_INTERPRETERS = 5  # scripts run by scripts: exec_binprm


def is_script(head):
    return head[:2] == b"#!"


def load_script(path, head):
    """(interpreter, its argument or None), as bytes, of the first BINPRM_BUF_SIZE bytes of a script.

    All behind the interpreter is one argument. A first line that does not fit may lose the end of its argument, not of
    the interpreter.
    """
    line = head[:BINPRM_BUF_SIZE].ljust(BINPRM_BUF_SIZE, b"\0")
    end = line.find(b"\n")
    if end < 0:
        line = line[: BINPRM_BUF_SIZE - 1]
        rest = line[2:].lstrip(SPACES)
        if not any(byte in ENDS for byte in rest):
            raise refused(errno.ENOEXEC, path, f"the interpreter named in its first {BINPRM_BUF_SIZE} bytes has no end")
    else:
        line = line[:end]
    words = line[2:].strip(SPACES)
    stop = next((i for i, byte in enumerate(words) if byte in ENDS), len(words))
    name, rest = words[:stop], words[stop:]
    if not name:
        raise refused(errno.ENOEXEC, path, "its first line names no interpreter")
    argument = None if rest[:1] in (b"", b"\0") else rest.lstrip(SPACES).split(b"\0")[0]
    return name, argument
