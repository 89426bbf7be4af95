"""An interpreter of Core ML ML Programs: what an `.mlpackage` computes, on any machine, with numpy alone."""

from .defaults import DefaultShapeError
from .execute import ExecutionError
from .features import Feature, ShapeError
from .plan import OperationInfo
from .program import Program
from .state import State

__all__ = ["DefaultShapeError", "ExecutionError", "Feature", "OperationInfo", "Program", "ShapeError", "State"]
