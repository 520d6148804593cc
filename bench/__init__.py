"""Benchmarks: `python -m bench [NAME...] [--quick] [--json]`. Numbers and the machine; nothing is asserted."""
