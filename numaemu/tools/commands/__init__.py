"""Commands of the command line, a file each: `command` is what click runs. cli.py loads them when they are asked for."""
