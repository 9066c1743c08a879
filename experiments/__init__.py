"""The binaries: flags, paths, progress, tables, pictures; no formula."""
