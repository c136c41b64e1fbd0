"""/sys/kernel/tracing: what tracepoints mean (`events`), what the rings hold (`ring`), and the files (`files`)."""
