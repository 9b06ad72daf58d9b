"""Benchmarks beside peers, measured in the same run, each a module to run: python -m benchmarks.engine"""
