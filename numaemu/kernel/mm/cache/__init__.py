"""The page cache: files' pages, readahead, writeback, truncation, tmpfs. Linux's mm/filemap.c and its kin."""
