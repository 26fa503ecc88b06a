"""Search algorithms: everything that turns a pruning problem into a pruning policy, one file per algorithm."""

__dist__ = "amc-search"
