"""Benchmarks against peers: ``python -m benchmarks NAME --json FILE``. See README.md beside this file."""
