"""python -m numaemu"""

import sys


def start():
    """Run the command line; Ctrl-C while it is being imported ends it as quietly as later."""
    try:
        from numaemu.tools.cli import INTERRUPTED, main
    except KeyboardInterrupt:
        return 130
    try:
        return main()
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(start())
