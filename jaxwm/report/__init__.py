"""Pages about finished runs: tables, curves, statistics, lineage."""
