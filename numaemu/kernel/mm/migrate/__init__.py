"""Moving pages: migrate_pages and compaction. Linux's mm/migrate.c and compaction.c."""
