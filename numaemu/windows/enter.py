"""A program of its own, started by numaemu/windows/namespace.py: runs a command where /proc and /sys are an emulated machine's.

python enter.py SOCKET live|snapshot COMMAND…

It goes into user, mount and pid namespaces of its own. `live`: it opens /dev/fuse, mounts it, and sends the descriptor through the
socket to the driver, which serves it. `snapshot`: it gets the files through the socket, as a tar. Everything is gone with the
last process of the namespaces, which ends when the driver does. It uses the standard library only: Python starts it without sites.
"""

import array
import ctypes
import os
import select
import signal
import socket
import sys
import tarfile

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG = 1
FAILED, NOT_FOUND, NOT_PERMITTED = 1, 127, 126  # exit status, the last two as a shell has them
STAGE = "/sys"  # a directory that every host has: the tree is mounted there first, then its parts where they belong
LIBC = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The host does not allow something."""


def check(result, what):
    if result != 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno()).lower()}")


def mount(source, target, kind, flags, options=""):
    """mount(2)"""
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    check(LIBC.mount(*words, ctypes.c_ulong(flags), options.encode() or None), f"mounting {target}")


def unshare():
    """Go into namespaces of our own; who we are stays as it is."""
    uid, gid = os.geteuid(), os.getegid()
    if LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID) != 0:
        why = os.strerror(ctypes.get_errno()).lower()
        if uid != 0 or LIBC.unshare(CLONE_NEWNS | CLONE_NEWPID) != 0:
            raise Refused(f"the host does not allow user namespaces ({why})")
    else:
        try:
            write("/proc/self/setgroups", "deny")
            write("/proc/self/uid_map", f"{uid} {uid} 1")
            write("/proc/self/gid_map", f"{gid} {gid} 1")
        except OSError as error:
            raise Refused(f"the host does not allow user namespaces ({str(error.strerror).lower()})") from None
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def mount_live(link):
    """Mount FUSE at the stage; the driver gets the descriptor and says when it can answer."""
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"/dev/fuse cannot be opened: {str(error.strerror).lower()}") from None
    options = f"fd={fuse},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions"
    mount("numaemu", STAGE, "fuse", MS_NOSUID | MS_NODEV, options)
    link.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fuse]))])
    os.close(fuse)
    if link.recv(1) != b"R":
        raise Refused("the driver does not serve the file system")


def mount_snapshot(link):
    """Unpack the driver's files at the stage, which is memory that goes with us."""
    mount("numaemu", STAGE, "tmpfs", MS_NOSUID | MS_NODEV)
    link.sendall(b"T")
    with link.makefile("rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        tar.extraction_filter = lambda member, path: member  # it is our own; Python 3.12 asks how far it is trusted
        for member in tar:
            tar.extract(member, STAGE)


def run(command):
    """The first process of the pid namespace: it becomes the command."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        complain(f"{command[0]}: command not found")
        os._exit(NOT_FOUND)
    except OSError as error:
        complain(f"{command[0]}: {str(error.strerror).lower()}")
        os._exit(NOT_PERMITTED)


def complain(text):
    print(f"numaemu: {text}", file=sys.stderr, flush=True)


def wait(pid, link):
    """The command's exit status; it ends if the driver does, which closes its end of the socket."""
    child = os.pidfd_open(pid)
    ready, _, _ = select.select([child, link], [], [])
    if child not in ready:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def main(socket_fd, how, *command):
    """Exit status: the command's, or FAILED after a line."""
    link = socket.socket(fileno=int(socket_fd))
    link.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's
    try:
        unshare()
        (mount_live if how == "live" else mount_snapshot)(link)
        mount(f"{STAGE}/proc", "/proc", None, MS_BIND)
        mount(f"{STAGE}/sys", "/sys", None, MS_BIND)
    except (Refused, OSError, tarfile.TarError) as error:
        link.sendall(b"E" + str(error).encode())
        return FAILED
    link.sendall(b"G")
    pid = os.fork()
    if pid == 0:
        run(list(command))
    return wait(pid, link)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
