"""Several processes that share work: the only package that imports `torch.distributed`."""

from tfm_cli.parallel.process_group import Parallel

__all__ = ["Parallel"]
