"""machine.every: functions of the driver at intervals of emulated time."""

import pytest

from numaemu.errors import ConfigError
from numaemu.machine import Machine


@pytest.fixture(scope="module")
def machine():
    with Machine(nodes=1, cpus_per_node=2, memory_per_node="32MiB") as booted:
        yield booted


def go_over(task, passes):
    """Accesses in the middle of one operation, too."""
    area = task.mmap(1 << 20)
    for _ in range(passes):
        area.touch(stride=64)
    return task.clock_ns


def test_called_at_intervals_of_emulated_time(machine):
    """Also between the accesses of one operation; no more once it is stopped."""
    times = []
    timer = machine.every(100_000, times.append)
    start = machine.run(lambda task: task.clock_ns)
    end = machine.run(go_over, 4)
    timer.stop()
    assert timer.calls == len(times) and len(times) >= 0.7 * (end - start) / 100_000
    assert all(b - a >= 1 for a, b in zip(times, times[1:], strict=False)) and start <= times[0] and times[-1] <= end
    machine.run(go_over, 2)
    assert timer.calls == len(times)


def test_it_may_ask_the_machine(machine):
    """While the CPU that has come so far stands still: its tasks' pages, figures, files."""
    task, used = machine.task(), []
    area = task.mmap(1 << 20)
    timer = machine.every(50_000, lambda now: used.append(int(task.accessed(area.addr, 1 << 20).sum())))
    for _ in range(3):
        area.touch()
    handles = [machine.spawn(go_over, 2, cpu=cpu) for cpu in (0, 1)]
    for handle in handles:
        handle.result()
    timer.stop()
    assert max(used) > 0 and timer.calls == len(used)


def test_what_it_raises_ends_it(machine, capfd):
    """Said once, on stderr; the machine goes on."""
    timer = machine.every(1000, lambda now: 1 // 0)
    machine.run(go_over, 1)
    assert isinstance(timer.error, ZeroDivisionError) and timer.calls == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_what_is_refused(machine):
    with pytest.raises(ConfigError, match="must be at least 1"):
        machine.every(0, print)
    with pytest.raises(TypeError, match="callable"):
        machine.every(1000, None)
