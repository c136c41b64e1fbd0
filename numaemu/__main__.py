"""python -m numaemu"""
import sys

from numaemu.cli import main

if __name__ == "__main__":
    sys.exit(main())
