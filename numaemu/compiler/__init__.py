"""How functions of this package become machine code, and how Python and machine code see the same structs.

`pointer` declares structs, `decorators` marks compiled functions (@kernel, @hot, @entry, @callback), `atomic` and `native` are
what only machine code can do, `pipeline` is what Numba does to a function before LLVM gets it. `image` is the file that keeps
compiled functions, `link` puts them into a process, `foreman` and `worker` are the processes that compile, `stamp` and `build`
decide what a change of a file makes out of date.
Every room above may use it. It imports `spec` and `host` only; a new decorator or intrinsic goes here, nothing emulated does.
"""
