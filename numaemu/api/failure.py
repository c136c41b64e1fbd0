"""What is shown of an error: the user's own lines, in the driver and in the task, and none of the emulator's."""

import os
import sys
import traceback

_NOTE = "in a task on a CPU of the machine:"
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_INTERNAL = (
    PACKAGE,
    os.sep + os.path.join("concurrent", "futures") + os.sep,
    "<frozen importlib",
    f"{os.sep}IPython{os.sep}",
    f"{os.sep}ipykernel{os.sep}",
)


def is_internal(path):
    """True for a frame between the user's own code and what it called. Workloads count as the user's, wherever they lie."""
    return any(part in path for part in _INTERNAL) and not path.startswith(f"{PACKAGE}workloads{os.sep}")


def failure_text(error, everything=False):
    """The traceback of what a workload raised: its own frames only, those of its task on a CPU too."""
    report = traceback.TracebackException.from_exception(error)
    drop_note(report)
    if not everything:
        drop_internal(report)
        if getattr(error, "one_line", False):
            return one_line(error, report)
    text = "".join(report.format())
    inside = getattr(error, "emulated_traceback", "")
    if not inside:
        return text
    last = "".join(report.format_exception_only())
    own = inside if everything else own_frames(inside)
    if '  File "' in inside and '  File "' not in own:  # none of its own code was under way there
        return text
    return f"{text.removesuffix(last)}{_NOTE}\n{own}"


def drop_note(report):
    """Take out of a TracebackException what `show_own_frames` has added: here it is said in its place."""
    report.__notes__ = [note for note in getattr(report, "__notes__", None) or () if not note.startswith(_NOTE)] or None


def show_own_frames(error):
    """Let Python show of a task's error where in the task's own function it happened, and a notebook only the user's own frames."""
    inside = own_frames(getattr(error, "emulated_traceback", ""))
    try:
        error._render_traceback_ = in_a_notebook
        if '  File "' in inside and not any(note.startswith(_NOTE) for note in getattr(error, "__notes__", ())):
            frames = [line for line in inside.splitlines() if line.startswith("  ")]
            error.add_note("\n".join([_NOTE, *frames]))
    except (AttributeError, TypeError):
        pass  # an exception that takes no attribute
    return error


def in_a_notebook():
    """The lines that IPython shows of the exception it is handling. A function without the exception: so the two, and all that
    the frames refer to, are no circle.
    """
    return failure_text(sys.exc_info()[1]).rstrip().splitlines()


def one_line(error, report):
    """An error that its message explains, and the workload's line."""
    where = "".join(f" ({os.path.basename(f.filename)}, line {f.lineno}, in {f.name})" for f in report.stack[-1:])
    return f"numaemu: {error}{where}\n"


def drop_internal(report):
    """Take the driver's internals out of a TracebackException and of what it was raised from."""
    seen = set()
    while report is not None and id(report) not in seen:
        seen.add(id(report))
        report.stack = traceback.StackSummary.from_list([f for f in report.stack if not is_internal(f.filename)])
        report = report.__cause__ or report.__context__


def own_frames(text):
    """A printed traceback without the frames of the package: each is its `File` line and the lines below it."""
    kept, internal = [], False
    for line in text.splitlines(keepends=True):
        if line.startswith('  File "'):
            internal = is_internal(line.split('"')[1])
        elif not line.startswith("    "):
            internal = False
        if not internal:
            kept.append(line)
    return "".join(kept)
