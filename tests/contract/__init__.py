"""What every method and its factors must obey: inherit `MethodContract` and name the methods.

    class TestLowRank(MethodContract):
        METHODS = (LowRank(rank=3), …)

conftest.py gives each test that asks for `method` one after the other of `METHODS`.
"""

from __future__ import annotations

from .compressing import CompressingContract
from .factors import FactorsContract
from .metrics import MetricsContract
from .sizes import SizesContract
from .stored import StoredContract


class MethodContract(
    StoredContract, SizesContract, MetricsContract, CompressingContract, FactorsContract
):
    """All parts of the contract."""
