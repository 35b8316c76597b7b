"""Observations as a table, and the operators that turn a model state into what they would have seen."""

from lsda_fast.observations.operators import ObservationOperator, StencilOperator
from lsda_fast.observations.table import Observations

__all__ = ["ObservationOperator", "Observations", "StencilOperator"]
