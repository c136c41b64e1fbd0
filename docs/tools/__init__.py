"""What makes and checks the pages: examples that run, tables made from the source, pictures of real output.

`examples` runs every example and compares, `tables` writes the parts of pages that the source knows, `gallery` runs every
workload and draws what it prints, `links` looks at links and names. `make pages` runs them all; tests/project/test_docs.py
checks that nothing would change.
"""
