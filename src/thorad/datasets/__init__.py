"""Data sets: cases and their tables, layouts as they are published, checks and splits by subject."""
