"""Ways of running shards. An executor decides where and when; never what: the rows are the same from all of them."""

from harness.executors.base import Executor, ExecutorContext

__all__ = ["Executor", "ExecutorContext"]
