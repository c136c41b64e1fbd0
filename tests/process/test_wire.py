"""What travels between processes, and what does not."""

import traceback

import pytest

from numaemu import O_CREAT, O_RDWR, Mapping
from numaemu.process.wire import dumps

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize("hold, what, advice", [
    (lambda task: task.mmap(4096), "<mapping 0x", r"pass its address and size \(mapping.addr, mapping.nbytes\) as arguments"),
    (lambda task: task.mmap(4096).array(), "<array of", "pass its address and size .* as array\\[:\\]"),
    (lambda task: task, "<task ", "a function gets its own task as its first argument"),
    (lambda task: task.open("/dev/shm/x", O_CREAT | O_RDWR), "<file /dev/shm/x", r"pass its descriptor \(file.fd\)")])  # fmt: skip
def test_what_a_function_captures_and_cannot_take_along_is_named(two_nodes, hold, what, advice):
    thing = hold(two_nodes.task())

    def function(task):
        return thing

    for travels in (function, [thing], {"result": thing}):
        with pytest.raises(TypeError, match=f"^{what}.* cannot go to another process, .*{advice}") as caught:
            dumps(travels)
        assert "cloudpickle" not in "".join(traceback.format_exception(caught.value))


def test_a_mapping_made_of_an_address_is_the_same_memory(two_nodes):
    task = two_nodes.task()
    there = task.mmap(8192)
    there.array()[:2] = 5, 6
    assert Mapping(task, there.addr, there.nbytes).array()[:3].tolist() == [5, 6, 0]
