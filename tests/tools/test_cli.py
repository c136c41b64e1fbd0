"""The command line: exit statuses, one-line errors, ARGS, --set, --json, printed text, Ctrl-C.

Runs go through a process of their own, as a user's do. Wrong usage is tried in this process, where starting one is
forbidden.
"""

import contextlib
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from numaemu import __version__
from numaemu.compiler import foreman, link
from numaemu.compiler.build import JIT
from numaemu.compiler.image import Image
from numaemu.spec.topology import Topology
from numaemu.tools import cli, shipped

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_S = 200  # compiling on a fresh machine included
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)} | {"COLUMNS": "80"}
ENVIRONMENT.pop("NUMAEMU_DEBUG", None)

STORY = '''
    """A story in one line.

    More of it."""
    import random
    import sys

    import numpy as np

    MACHINE = dict(nodes=2, cpus_per_node=1, memory_per_node="64MiB", name="small")


    def touch(task, nbytes):
        memory = task.mmap(nbytes).touch()
        print("touched on node", task.node)
        return memory.nodes()


    def main(machine):
        print("args", sys.argv[1:])
        nodes = [machine.run(touch, "64KiB", cpu=cpu.id) for cpu in machine.cpus]
        return {"nodes": nodes, "mean": np.float32(0.5), "seed": machine.seed, "random": random.random(),
                "numpy": np.random.random()}
'''

WRONG = """
    import os
    import sys


    def bad(task):
        return helper(task)


    def helper(task):
        return task.load([0x1234])


    def main(machine):
        what = sys.argv[1]
        if what == "driver":
            raise ValueError("own words")
        if what == "task":
            machine.run(bad)
        if what == "interactive":
            machine.task(cpu=1).load([0x1234])
        if what == "exit":
            sys.exit(7)
        if what == "close":
            return machine.close()
        if what == "closed":
            machine.close()
            machine.run(bad)
        if what == "path":
            machine.read("/proc/memfree")
        os.kill(machine.processes["cpu 1"], 9)
        machine.run(bad, cpu=1)
"""


@pytest.fixture
def workload(tmp_path):
    """Writes a workload's text to a file; its path."""

    def write(text, name="story.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def numaemu(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "numaemu", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=ENVIRONMENT | environment,
    )
    done.stderr = without_progress(done.stderr)
    return done


def without_progress(text):
    """What was said on stderr, but for the line that a fresh machine gets."""
    return re.sub(r"^numaemu: compiling .*\n", "", text, flags=re.MULTILINE)


# --- runs ---------------------------------------------------------------------------------------
def test_run_prints_result_and_summary_and_writes_json(workload, tmp_path):
    path, out = workload(STORY), tmp_path / "out.json"
    done = numaemu(
        "run", path, "--json", str(out), "--seed", "5", "--set", "vm.min_free_kbytes=1000", "--", "-x", "--json", "3"
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    for text in (
        "args ['-x', '--json', '3']\n",
        "touched on node 0\n",
        "touched on node 1\n",
        "story.py on small",
        "A story in one line.",
        "numa_hit",
        "100%",
        "emulated time",
        "accesses/s",
    ):
        assert text in done.stdout, text
    figures = json.loads(out.read_text())
    assert list(figures) == [
        "numaemu",
        "machine",
        "workload",
        "mode",
        "seed",
        "wall_s",
        "compiled",
        "emulated_ns",
        "result",
        "vmstat",
        "nodes",
        "cpus",
        "tasks",
    ]
    assert (figures["numaemu"], figures["workload"], figures["mode"], figures["seed"]) == (__version__, path, "free", 5)
    check_story(figures)


def check_story(figures):
    """The figures of STORY agree with what it did, and with one another."""
    machine, result = Topology.from_dict(figures["machine"]), figures["result"]
    assert (machine.name, machine.nr_nodes, machine.nr_cpus) == ("small", 2, 2)
    assert machine.sysctl["vm.min_free_kbytes"] == 1000
    assert result["nodes"] == [[0] * 16, [1] * 16]
    assert (result["mean"], result["seed"]) == (0.5, 5)
    assert result["random"] == pytest.approx(0.62290169)
    assert result["numpy"] == pytest.approx(0.22199317)
    assert figures["wall_s"] > 0
    assert figures["emulated_ns"] == max(cpu["clock_ns"] for cpu in figures["cpus"])
    for node, (cpu, memory) in enumerate(zip(figures["cpus"], figures["nodes"])):
        assert (cpu["cpu"], cpu["node"], memory["node"]) == (node, node, node)
        assert (cpu["loads"], cpu["stores"], cpu["minor_faults"], cpu["major_faults"]) == (0, 16, 16, 0)
        assert cpu["l1_tlb_hits"] + cpu["l2_tlb_hits"] + cpu["page_walks"] == 16
        assert (cpu["local_accesses"], cpu["remote_accesses"]) == (16, 0)
        assert memory["accesses_from"] == [16 * (node == 0), 16 * (node == 1)]
        assert memory["numastat"]["numa_hit"] >= 16 and memory["numastat"]["numa_miss"] == 0
        assert memory["meminfo"]["MemTotal"] <= 64 * 1024
    assert figures["vmstat"]["pgfault"] == 32
    assert figures["tasks"] == []


@pytest.mark.interpreted
def test_quiet_prints_only_the_result(workload):
    path = workload('def main(machine):\n    """Nothing."""\n    return [len(machine.cpus), machine.topology.name]\n')
    done = numaemu(
        "run",
        "--quiet",
        path,
        "--machine",
        "uma",
        "--cpus-per-node",
        "3",
        "--memory-per-node",
        "32MiB",
        NUMAEMU_DEBUG=os.environ.get("NUMAEMU_DEBUG", ""),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[3, 'uma']\n", "")


def test_workload_imports_its_neighbour_and_caches_its_kernels(workload, tmp_path):
    workload(
        """
        import numba
        from numaemu import load_u64

        @numba.njit(cache=True)
        def first(cpu, address):
            return load_u64(cpu, address)
        """,
        "neighbour.py",
    )
    path = workload(
        """
        import numpy as np
        from neighbour import first

        def read(task):
            memory = task.mmap(4096)
            memory.array()[0] = 42
            return task.call(first, np.uint64(memory.addr))

        def main(machine):
            return machine.run(read)
        """,
        "types.py",
    )  # a name that a module of Python's own has
    done = numaemu("run", "--quiet", path, "--memory-per-node", "32MiB")
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    assert list((tmp_path / "__pycache__").glob("neighbour.first-*.nbi"))


def test_lines_of_tasks_do_not_mix(workload):
    path = workload("""
        def talk(task):
            for i in range(200):
                print("line", i, "of", task.cpu, end=" ")
                print("ends")
            print("no end of line", end="")

        def main(machine):
            for handle in [machine.spawn(talk, cpu=cpu.id) for cpu in machine.cpus]:
                handle.result()
        """)
    done = numaemu("run", "--quiet", path, "--memory-per-node", "32MiB")
    text = done.stdout.replace("no end of line", "")
    assert done.stdout.count("no end of line") == 4
    assert len(re.findall(r"^line \d+ of \d ends$", text, re.MULTILINE)) == len(text.splitlines()) == 800


@pytest.mark.parametrize("what, status, last, absent", [
    ("driver", 1, "ValueError: own words", "numaemu/"),
    ("task", 1, "numaemu.errors.SegmentationFault: ", "numaemu/"),
    ("interactive", 1, "numaemu.errors.SegmentationFault: ", "numaemu/"),
    ("close", 1, "RuntimeError: main(machine) has closed the machine", "numaemu/"),
    ("closed", 1, "numaemu.errors.MachineCheck: <machine custom: 2 nodes, 4 cpus> is closed: close() was called", "numaemu/"),
    ("path", 1, "numaemu: [Errno 2] No such file or directory (nearest: /proc/meminfo, ", "Traceback"),
    ("exit", 7, "", "Traceback"),
    ("kill", 3, "numaemu: emulator process 'cpu 1' (pid ", "Traceback"),
])  # fmt: skip
def test_exit_status_and_own_traceback(workload, what, status, last, absent):
    path = workload(WRONG, "wrong.py")
    done = numaemu("run", path, "--memory-per-node", "32MiB", "--", what)
    assert done.returncode == status
    lines = done.stderr.splitlines() or [""]
    assert lines[-1].startswith(last)
    assert not any(absent in line for line in lines if "File" in line or "Traceback" in absent)
    assert done.stdout == ""
    if what == "task":
        assert re.findall(r'File ".*/(.*)", line \d+, in (\w+)', done.stderr) == [
            ("wrong.py", "main"),
            ("wrong.py", "bad"),
            ("wrong.py", "helper"),
        ]
    if status == 3:
        assert len(lines) == 1


def test_debug_shows_every_frame(workload):
    done = numaemu(
        "run", workload("def main(machine):\n    machine.run(None)\n"), "--memory-per-node", "32MiB", NUMAEMU_DEBUG="1"
    )
    assert done.returncode == 1
    assert "numaemu/machine.py" in done.stderr


# --- wrong usage: one line, status 2, no process started -------------------------------------------
@pytest.fixture
def inside(monkeypatch, capsys):
    """Run a command line in this process, where none may be started: (status, lines on stderr)."""

    def forbidden(*_, **__):
        raise AssertionError("a process was started")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["numaemu"])
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(subprocess, "Popen", forbidden)
        status = cli.main(arguments)
        return status, capsys.readouterr().err.splitlines()

    return run


NODE = '[[node]]\nmemory = "64MiB"\ncpus = [0]\n'


@pytest.mark.parametrize("text, words", [
    ("", ["node must be a list"]), ("[[node]", ["not valid toml"]), (NODE + 'colour = "red"\n', ["colour"]),
    ('[[node]]\nmemory = "0"\ncpus = 1\n', ["machine has no memory"]), ('[[node]]\nmemory = "64MiB"\ncpus = "two"\n', ["cpus", "two"]),
    (NODE + NODE, ["cpu 0", "already in node 0"]), (NODE + "[distance]\nmatrix = [[9]]\n", ["distance", "9"]),
    (NODE + "[latency]\nmatrix = [[80, 90]]\n", ["latency", "2 entries"]), (NODE + '[sysctl]\n"vm.x" = 1\n', ["vm.x"]),
])  # fmt: skip
def test_bad_machine_file_gets_one_line(inside, workload, text, words):
    machine = workload(text, "bad.toml")
    status, lines = inside("run", workload(STORY), "--machine", machine)
    assert status == 2 and len(lines) == 1
    assert lines[0].startswith("numaemu: ") and machine in lines[0]
    assert all(word in lines[0] for word in words)


@pytest.mark.parametrize("arguments, words", [
    (["--machine", "two-sockets"], "did you mean 'two-socket'?"), (["--machine", "none.toml"], "not found (none.toml)"),
    (["--nodes", "0"], "nodes is 0, must be at least 1"), (["--nodes", "x"], "'--nodes'"),
    (["--memory-per-node", "lots"], "memory_per_node is 'lots'"), (["--set", "vm.min_free_kbytes"], "must be sysctl=value"),
    (["--set", "vm.min_free_kbyte=1"], "did you mean 'vm.min_free_kbytes'?"), (["--set", "vm.swappiness=x"], "vm.swappiness"),
    (["--bogus"], "--bogus"), (["--seed", "-1"], "--seed"),
    (["-q", "-v"], "--quiet and --verbose exclude each other"),
    (["--json", "/nowhere/out.json"], "/nowhere/out.json"), (["--json", "/"], "cannot be written"),
])  # fmt: skip
def test_wrong_option_gets_one_line(inside, workload, arguments, words):
    status, lines = inside("run", workload(STORY), *arguments)
    assert status == 2 and len(lines) == 1
    assert lines[0].startswith("numaemu: ") and words in lines[0]


@pytest.mark.parametrize("name, text, words", [
    ("none.py", None, "workload not found"), ("first_touh.py", None, "; 'numaemu workloads' lists"), ("story.txt", STORY, "must be a .py file"),
    ("empty.py", "x = 1", "no function main(machine)"), ("number.py", "main = 3", "no function main(machine)"),
    ("preset.py", "MACHINE = 'nosuch'\ndef main(machine): pass", "unknown preset 'nosuch'"),
    ("keyword.py", "MACHINE = dict(node=3)\ndef main(machine): pass", "MACHINE in "),
    ("type.py", "MACHINE = 3\ndef main(machine): pass", "machine is 3"),
    ("named.py", "MACHINE = 'nosuch'\ndef main(machine): pass", "(MACHINE in "),
    ("file.py", "MACHINE = 'none.toml'\ndef main(machine): pass", "(MACHINE in "),
    ("where.py", "MACHINE = dict(where=3)\ndef main(machine): pass", "unknown key 'where'"),
    ("list.py", "MACHINE = {(1, 2): 3}\ndef main(machine): pass", "unknown key (1, 2)"),
    ("digits.py", "MACHINE = dict(nodes=10**5000)\ndef main(machine): pass", "nodes is a number of about 5001 digits"),
    ("two\nlines.py", "MACHINE = 'nosuch'\ndef main(machine): pass", "two\\nlines.py"),
])  # fmt: skip
def test_unusable_workload_gets_one_line(inside, workload, tmp_path, name, text, words):
    path = workload(text, name) if text is not None else str(tmp_path / name)
    status, lines = inside("run", path)
    assert status == 2 and len(lines) == 1
    assert lines[0].startswith("numaemu: ") and words in lines[0]


@pytest.mark.parametrize(
    "text, last",
    [("def main(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError"), ("import nosuch_module", "ModuleNotFoundError")],
)
def test_workload_that_raises_when_loaded(inside, workload, text, last):
    status, lines = inside("run", workload(text, f"raises_{last}.py"))
    assert status == 1 and lines[-1].startswith(last)
    assert not any("numaemu/" in line or "importlib" in line for line in lines)


@pytest.mark.parametrize("arguments, status, words", [((), 2, "Usage"), (("nonsense",), 2, "nonsense"), (("run",), 2, "WORKLOAD"),
                                                      (("machine", "show", "x"), 2, "unknown preset 'x'")])  # fmt: skip
def test_wrong_command(inside, arguments, status, words):
    got, lines = inside(*arguments)
    assert got == status and words in lines[0]


# --- what comes along -----------------------------------------------------------------------------
def test_workloads_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["workloads"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, text in shipped.summaries().items():
        assert any(line.startswith(name) and line.rstrip().endswith(text) for line in lines), name
    assert len(shipped.summaries()) == len(list((ROOT / "workloads").glob("*.py"))) > 30


@pytest.mark.parametrize("given", ["first_touch", "first_touch.py"])
def test_a_workload_that_comes_along_is_found_by_its_name(given, tmp_path, monkeypatch):
    """From anywhere; but a file of that name comes first."""
    monkeypatch.chdir(tmp_path)
    assert cli.workload_path(given) == str(ROOT / "workloads" / "first_touch.py")
    (tmp_path / "first_touch.py").touch()
    (tmp_path / "latency").mkdir()
    own = tmp_path if given.endswith(".py") else ROOT / "workloads"
    assert cli.workload_path(given) == str(own / "first_touch.py")
    assert cli.workload_path("latency") == str(ROOT / "workloads" / "latency.py")


def test_an_installed_package_has_its_workloads_inside(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "numaemu"
    (package / "workloads").mkdir(parents=True)
    (package / "workloads" / "story.py").write_text('"""A story."""')
    (package.parent / "workloads").mkdir()  # somebody else's
    monkeypatch.setattr(shipped, "PACKAGE", package)
    assert shipped.summaries() == {"story": "A story."}
    assert shipped.find("story") == str(package / "workloads" / "story.py") and shipped.find("other") is None


def test_a_run_by_name_and_all_its_figures(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "numaemu", "run", "-v", "first_touch", "--memory-per-node", "32MiB"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path)},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    order = [
        "first_touch on custom",
        "Look for",
        "each share lies wholly",
        "result",
        "numa_hit",
        "vmstat",
        "emulated time",
    ]
    assert [done.stdout.index(text) for text in order] == sorted(done.stdout.index(text) for text in order)


def test_numaemu_alone_says_what_a_person_needs(inside):
    status, lines = inside()
    assert status == 2 and lines[0] == "Usage: numaemu COMMAND …"
    assert [line.split()[:2] for line in lines[2:]] == [
        ["numaemu", name] for name in ("workloads", "run", "run", "machine", "run")
    ]
    assert max(map(len, lines)) <= 80


# --- the machine a run gets -----------------------------------------------------------------------
class Options:
    machine = nodes = cpus_per_node = memory_per_node = None
    settings, seed = (), 0

    def __init__(self, **given):
        vars(self).update(given)


class Stated:
    __file__ = "/home/me/story.py"

    def __init__(self, machine):
        self.MACHINE = machine


@pytest.mark.parametrize("stated, given, shape", [
    (None, {}, ("custom", 2, 4)), ("uma", {}, ("uma", 1, 4)), ("uma", {"machine": "cxl"}, ("cxl", 3, 4)),
    ("uma", {"nodes": 3}, ("uma", 3, 12)), (dict(nodes=3, cpus_per_node=1), {"cpus_per_node": 2}, ("custom", 3, 6)),
    (dict(nodes=2, distance=[[10, 30], [30, 10]]), {"nodes": 4}, ("custom", 4, 8)),
])  # fmt: skip
def test_options_replace_or_change_what_the_workload_states(stated, given, shape):
    topology = cli.choose_topology(Options(**given), Stated(stated))
    assert (topology.name, topology.nr_nodes, topology.nr_cpus) == shape


def test_settings_change_the_stated_ones():
    topology = cli.choose_topology(
        Options(settings=("vm.swappiness=10", "vm.lowmem_reserve_ratio=256 256 32")),
        Stated(dict(sysctl={"vm.swappiness": 1, "vm.overcommit_memory": 1})),
    )
    assert topology.sysctl == {
        "vm.swappiness": 10,
        "vm.overcommit_memory": 1,
        "vm.lowmem_reserve_ratio": (256, 256, 32),
    }


def test_machine_show_is_a_machine_file(capsys, tmp_path):
    assert cli.main(["machine", "show", "cxl"]) == 0
    path = tmp_path / "copy.toml"
    path.write_text(capsys.readouterr().out)
    assert cli.main(["machine", "show", str(path)]) == 0
    assert capsys.readouterr().out == path.read_text()


def test_machine_list(capsys):
    assert cli.main(["machine", "list"]) == 0
    assert "four-node-ring" in capsys.readouterr().out


# --- compiling ------------------------------------------------------------------------------------
BOOT = ("init_memory_mapping", "post")
LATER = ("serve_node", "create_task", "handle_mm_fault", "do_anonymous_page", "sys_move_pages")
STORY_RUN = ("--seed", "5", "--set", "vm.min_free_kbytes=1000")


def compiled_here():
    """What is compiled of these sources: all."""
    image = Image(link.image_path())
    image.read()
    assert image.complete
    return image.functions


def symbols_of(names):
    """The symbols of functions that are compiled by themselves, each of which has a name of its own."""
    found = {symbol for symbol in compiled_here() if symbol.rpartition(".")[2] in names}
    assert len(found) == len(names)
    return found


def place_without(path, lacks):
    """A new place for compiled code, as after a change that concerns some functions: an image of the sources before it lies
    there, and the image of these sources begins with all that this one holds.
    """
    path.mkdir()
    old = Image(path / f"{link.image_name().rpartition('-')[0]}-old.image")
    old.mend()
    for symbol, compiled in compiled_here().items():
        if symbol and symbol not in lacks:
            old.append(symbol, compiled)
    return {"NUMBA_CACHE_DIR": str(path)}


def image_in(path):
    """The only image in a place."""
    (found,) = path.glob("*.image")
    image = Image(found)
    image.read()
    return image


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_a_first_run_compiles_what_it_needs(workload, tmp_path):
    """Where much has not been compiled, and a part of what each run needs: the run is the same, says so, and what it needed is
    there afterwards. Nearly all of that is what compilers begin with. (The suite's own first step compiles from scratch.)
    """
    path, out, needed = workload(STORY), tmp_path / "out.json", tmp_path / "needed"
    first = foreman.first_functions()
    env = place_without(tmp_path / "place", compiled_here().keys() - set(first) | set(first[::6]))
    done = subprocess.run(
        [sys.executable, "-m", "numaemu", "run", path, "--json", str(out), *STORY_RUN],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=ENVIRONMENT | env | {"NUMAEMU_RECORD": str(needed)},
    )
    assert done.returncode == 0
    assert done.stderr == foreman.FIRST_TIME + "\n"
    assert "of the kernel were compiled meanwhile" in done.stdout
    figures = json.loads(out.read_text())
    check_story(figures)
    image, symbols = image_in(tmp_path / "place"), set(needed.read_text().split())
    assert 0 < figures["compiled"] < len(image.functions) and not image.complete
    assert all(map(image.holds, symbols)) and len(symbols & set(first[::6])) > 20
    assert len(symbols - set(first)) < 0.2 * len(first), "first.txt is out of date: make first-functions"


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_a_machine_outlives_its_compilers(workload, tmp_path):
    """Killed, they are started again: the first by the fork server, the others by whichever process needs them."""
    out, killed, lacks = tmp_path / "out.json", set(), symbols_of(BOOT + LATER)
    process = subprocess.Popen(
        [sys.executable, "-m", "numaemu", "run", workload(STORY), "--json", str(out), *STORY_RUN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | place_without(tmp_path / "place", lacks),
    )
    while process.poll() is None and len(killed) < 3:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.cmdline()[:1] == ["numaemu: compiling"] and child.pid not in killed:
                    child.kill()
                    killed.add(child.pid)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    assert len(killed) == 3
    check_story(json.loads(out.read_text()))
    assert all(map(image_in(tmp_path / "place").holds, lacks))


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
@pytest.mark.parametrize("lacks", [BOOT, ()])
def test_from_python_a_first_use_says_that_it_compiles(tmp_path, lacks):
    """Once, although there are two machines; nothing if nothing is compiled."""
    program = """
from numaemu import Machine
for _ in range(2):
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="16MiB") as machine:
        print(machine.task().mmap(4096).touch().nodes())
"""
    env = place_without(tmp_path / "place", symbols_of(lacks)) if lacks else {}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S, env=ENVIRONMENT | env
    )
    assert (done.returncode, done.stdout) == (0, "[0]\n[0]\n")
    assert done.stderr == (foreman.FIRST_TIME + "\n" if lacks else "")


@pytest.mark.skipif(not JIT, reason="nothing is compiled")
def test_compile_says_that_nothing_is_left():
    done = numaemu("compile")
    assert (done.returncode, done.stdout, done.stderr) == (0, "all is compiled\n", "")
    done = numaemu("compile", NUMBA_DISABLE_JIT="1")
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "numaemu: NUMBA_DISABLE_JIT is set: nothing is compiled\n",
    )


# --- terminals and signals ------------------------------------------------------------------------
def test_on_a_terminal_progress_goes_around_the_printed_lines(workload):
    """The live line is redrawn with control characters; the lines of tasks stay whole."""
    path = workload("""
        def talk(task):
            for i in range(50):
                print("line", i, "ends")

        def main(machine):
            machine.run(talk)
            machine.stats()
        """)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "numaemu", "run", path, "--memory-per-node", "32MiB"],
        stdout=theirs,
        stderr=theirs,
        env=ENVIRONMENT | {"TERM": "xterm"},
    )
    os.close(theirs)
    text = read_all(ours)
    assert process.wait(DEADLINE_S) == 0
    assert "\x1b[2K" in text and " s  starting" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")
    assert re.findall(r"^line (\d+) ends$", plain, re.MULTILINE) == [str(i) for i in range(50)]
    assert "\x1b[?25h" in text.rpartition("accesses/s")[0]  # the cursor is back before the last line


def read_all(terminal):
    """What is written to a terminal until its last writer has gone."""
    parts = []
    try:
        while part := os.read(terminal, 65536):
            parts.append(part)
    except OSError:
        pass  # EIO: nobody holds the other end any more
    os.close(terminal)
    return b"".join(parts).decode()


SLEEPY = """
    import time

    def busy(task):
        memory = task.mmap("1MiB")
        while True:
            memory.touch()

    def main(machine):
        handle = machine.spawn(busy, cpu=1)
        print("ready", flush=True)
        {wait}
"""


def interruptible():
    """Whoever runs the tests in the background of a shell ignores Ctrl-C, and hands that on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    "wait, fresh", [("handle.result()", False), ("time.sleep(1000)", False), ("time.sleep(1000)", True)]
)
def test_ctrl_c_ends_a_run_and_every_process(workload, tmp_path, wait, fresh):
    """Also the compilers, which are at work where much is still to be compiled."""
    env = ENVIRONMENT
    if fresh and JIT:
        rest = compiled_here().keys() - set(foreman.first_functions())
        env = env | place_without(tmp_path / "place", rest)
    process = subprocess.Popen(
        [sys.executable, "-m", "numaemu", "run", workload(SLEEPY.format(wait=wait)), "--memory-per-node", "32MiB"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        preexec_fn=interruptible,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        children = psutil.Process(process.pid).children(recursive=True)
        names = {child.name() for child in children}
        assert {"numaemu: coordinator", "numaemu: node 0", "numaemu: cpu 3"} <= {name[:20] for name in names}
        assert ("numaemu: compiler" in names) == (fresh and JIT)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()  # else a run that did not end would disturb whatever comes after it
    assert process.returncode == 130
    said = without_progress(errors).strip().splitlines()
    assert said[0] == "numaemu: interrupted" and re.fullmatch(r"  main: story.py, line \d+, in main", said[1])
    assert re.fullmatch(r"  (task \d+ \(busy\) on cpu 1: story.py, line \d+, in busy|cpu 1 does not answer.*)", said[2])
    assert psutil.wait_procs(children, timeout=10)[1] == []


@pytest.mark.parametrize("ignored", [False, True])
def test_a_time_limit_ends_a_run_like_ctrl_c(workload, ignored):
    """Also in the background of a shell, which ignores Ctrl-C."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "numaemu",
            "run",
            "--timeout",
            "2",
            workload(SLEEPY.format(wait="handle.result()")),
            "--memory-per-node",
            "32MiB",
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler),
    )
    assert done.returncode == 130
    assert without_progress(done.stderr).strip().splitlines()[0] == "numaemu: interrupted after 2 s (--timeout)"


def test_reader_that_goes_away_ends_it_quietly(workload):
    """numaemu run … | head -1"""
    path = workload("def main(machine):\n    for i in range(100000):\n        print('line', i)\n")
    with subprocess.Popen(
        [sys.executable, "-m", "numaemu", "run", path, "--memory-per-node", "32MiB"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert without_progress(process.stderr.read()) == ""
    assert process.returncode == 1
