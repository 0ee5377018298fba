"""Throughput and memory; results are kept in `benchmarks/results/` with date, device and versions."""
