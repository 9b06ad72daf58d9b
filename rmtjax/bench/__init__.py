"""How fast, beside others in the same run."""

from rmtjax.bench.svd import bench_svd

__all__ = ["bench_svd"]
