"""Where a program is: the innermost line of the user's own code under way in a thread, or where an interruption met it."""

import os
import pathlib
import sys
import threading
import traceback

_NOT_ONES_OWN = (str(pathlib.Path(__file__).parents[1]) + os.sep, os.path.dirname(os.__file__) + os.sep, "<frozen")


def own_line(frames):
    """Of (file, line, function), from the outermost on, the last that is the user's, as text; "" if none is."""
    own = [
        f"{os.path.basename(file)}, line {line}, in {name}"
        for file, line, name in frames
        if not file.startswith(_NOT_ONES_OWN)
    ]
    return own[-1] if own else ""


def of_thread(ident):
    """Where a thread of this process is."""
    frame = sys._current_frames().get(ident)
    return own_line(
        (f.f_code.co_filename, line, f.f_code.co_name) for f, line in reversed(list(traceback.walk_stack(frame)))
    )


def of_error(error):
    """Where an exception has met the user's code."""
    return own_line(
        (f.f_code.co_filename, line, f.f_code.co_name) for f, line in traceback.walk_tb(error.__traceback__)
    )


class Running:
    """The functions that tasks of a process run: which thread runs which."""

    def __init__(self):
        self.tasks = {}

    def begin(self, *task):
        self.tasks[threading.get_ident()] = task

    def end(self):
        self.tasks.pop(threading.get_ident(), None)

    def lines(self):
        """[(task, where it is)]"""
        return [(task, of_thread(ident)) for ident, task in list(self.tasks.items())]
