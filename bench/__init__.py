"""Benchmarks: `python -m bench [NAME...] [--quick] [--json]`. They print numbers and the machine, and assert nothing."""
