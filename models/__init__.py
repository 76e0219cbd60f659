"""Reference models, labelled data and small graph builders for tests and benchmarks.

`suite` holds the fourteen networks that pwopt is measured on, `blocks` the small graphs that tests
are written against, `datasets` the labelled data, `store` the files that have to be fetched first.
"""

from __future__ import annotations

if __name__ == "models":
    raise ImportError("import pwopt.models, not models: the folder is part of the pwopt package")

from pwopt.models.blocks import BLOCKS
from pwopt.models.datasets import labelled_data
from pwopt.models.suite import SUITE, SuiteModel, load_suite

__all__ = ["BLOCKS", "SUITE", "SuiteModel", "labelled_data", "load_suite"]
