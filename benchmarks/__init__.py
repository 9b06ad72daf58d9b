"""What is fast, measured beside its peers in one run, each a module to run: python -m benchmarks.engine"""
