"""What tasks print, on its way to where the driver prints."""

import threading

from numaemu.process.screen import Screen


class Link:
    """The coordinator's end of the driver's link."""

    def __init__(self):
        self.sent = []

    def sendall(self, data):
        self.sent.append(data)

    def send(self, data):
        self.sent.append(bytes(data))
        return len(data)

    def sendmsg(self, parts, *rest):
        self.sent += [bytes(part) for part in parts]
        return sum(len(part) for part in parts)


def test_nothing_is_left_to_wait_for_once_the_thread_has_ended(capsys):
    screen, done = Screen(Link(), threading.Lock()), []
    screen.show(0, "a text\n")
    screen.after(lambda: done.append(1))
    screen.end()
    screen.thread.join()
    assert capsys.readouterr().out == "a text\n"
    assert done == [1]
    assert screen.queue.unfinished_tasks == 0


def test_what_goes_wrong_behind_a_text_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    screen = Screen(Link(), threading.Lock())
    screen.put(lambda: 1 / 0)
    screen.thread.join()
    assert screen.queue.unfinished_tasks == 0
