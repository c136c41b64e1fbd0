"""Moving pages: Linux's mm/migrate.c and compaction.c. `move_pages` says which and where to, `migrate` and `large_folio` move them.

Compaction: `compaction` runs it, `migrate_scanner` and `free_scanner` find the pages, `kcompactd` starts it in the background.
"""
