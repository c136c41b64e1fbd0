"""What is shown of an error: the user's own lines, in the driver and in the task, and none of the emulator's."""

import subprocess
import sys
import traceback

import pytest

from numaemu.api import failure

pytestmark = pytest.mark.interpreted


def test_own_frames_keeps_the_users_lines():
    text = (
        f'Traceback (most recent call last):\n  File "{failure.PACKAGE}cpu.py", line 1, in run_task\n    answer = f()\n'
        '             ^^^\n  File "/home/me/w.py", line 4, in bad\n    return helper(task)\n           ^^^^^^\n'
        f'  File "{failure.PACKAGE}task.py", line 9, in load\n    return self._op()\nValueError: a\nb\n'
    )
    assert failure.own_frames(text) == (
        'Traceback (most recent call last):\n  File "/home/me/w.py", line 4, in bad\n    return helper(task)\n'
        "           ^^^^^^\nValueError: a\nb\n"
    )


def test_failure_text_shows_the_tasks_own_traceback():
    error = ValueError("x")
    error.emulated_traceback = "Traceback (most recent call last):\nValueError: x\n"
    text = failure.failure_text(error)
    assert "in a task on a CPU of the machine:\nTraceback (most recent call last):\n" in text
    assert text.count("ValueError: x") == 1


def test_failure_text_shows_no_traceback_of_the_emulator_alone():
    error = ValueError("x")
    error.emulated_traceback = (
        f'Traceback (most recent call last):\n  File "{failure.__file__}", line 1, in f\n    x\nValueError: x\n'
    )
    assert failure.failure_text(error) == "ValueError: x\n"


def test_an_error_of_one_line_names_the_workload_s_line(tmp_path):
    error = FileNotFoundError(2, "No such file (nearest: a)", "/proc/nope")
    error.one_line = True
    try:
        exec(compile("raise error", str(tmp_path / "story.py"), "exec"), {"error": error})
    except OSError as raised:
        text = failure.failure_text(raised)
    assert text.startswith("numaemu: [Errno 2] No such file (nearest: a): '/proc/nope' (") and text.count("\n") == 1


def raised(function):
    """The exception that a function raises, with its traceback."""
    try:
        function()
    except Exception as error:
        return error


def in_a_task(
    text='Traceback (most recent call last):\n  File "/home/me/w.py", line 4, in bad\n    load()\nValueError: x\n',
):
    error = ValueError("x")
    error.emulated_traceback = text
    return error


def test_python_itself_shows_where_in_the_task_it_happened():
    """Once, however often the error is raised again; the command line, which says it in its place, does not repeat it."""
    error = failure.show_own_frames(failure.show_own_frames(in_a_task()))
    shown = "".join(traceback.format_exception(error))
    assert shown.endswith(
        'ValueError: x\nin a task on a CPU of the machine:\n  File "/home/me/w.py", line 4, in bad\n    load()\n'
    )
    assert failure.failure_text(error).count("in bad") == 1


def test_a_notebook_shows_the_users_frames_only():
    """As IPython does it: it calls the exception's own method while it handles the exception."""
    error = failure.show_own_frames(in_a_task())
    frames = {"call": compile("raise error", "/home/me/cell.py", "exec"), "shell": f"{failure.PACKAGE}machine.py"}
    try:
        exec(compile("exec(call, {'error': error})", frames["shell"], "exec"), frames | {"error": error})
    except ValueError as caught:
        lines = caught._render_traceback_()
    text = "\n".join(lines)
    assert "/home/me/cell.py" in text and "in bad" in text and "machine.py" not in text
    assert lines[-1] == "ValueError: x"


def test_an_error_that_is_shown_does_not_keep_what_its_frames_refer_to():
    """Without a collector: the error and the method that shows it are no circle."""
    program = """
import gc, weakref
from numaemu.api.failure import show_own_frames
gc.disable()
class Thing: pass
def fail(thing):
    raise show_own_frames(ValueError("x"))
thing = Thing()
gone = weakref.ref(thing)
try:
    fail(thing)
except ValueError:
    pass
del thing
print(gone())
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "None\n"


def test_a_workload_that_is_installed_with_the_package_counts_as_the_users():
    assert failure.is_internal(f"{failure.PACKAGE}cpu.py")
    assert not failure.is_internal(f"{failure.PACKAGE}workloads/latency.py")
