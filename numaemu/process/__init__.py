"""How the processes of a machine live and talk: actors and their messages, what travels as bytes, whose turn a CPU is.

Coordinator, nodes, CPUs and the driver use it. Messages between them are handled by `actor`; a new kind of message is a method
rpc_… of the process that answers it.
"""
