"""An interpreter of Core ML ML Programs: what an `.mlpackage` computes, on any machine, with numpy alone."""

from .execute import ExecutionError
from .features import Feature
from .plan import OperationInfo
from .program import Program
from .state import State

__all__ = ["ExecutionError", "Feature", "OperationInfo", "Program", "State"]
