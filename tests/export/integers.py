"""Captured models with some weights as integers, and what packages hold of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from palmtop.export.capture import Captured
from palmtop.export.modules import user_path
from palmtop.quantize.scheme import Scheme
from palmtop.quantize.sites import find_sites
from palmtop.quantize.weights import quantize
from palmtop.runtime.mil.package import Package
from palmtop.runtime.mil.values import constant


def with_integers(captured: Captured, schemes: Mapping[str, Scheme] | Scheme) -> Captured:
    """A captured model with weights rounded to nearest by these schemes, by the names that the user's model has."""
    program = captured.private_program()
    program._state_dict = dict(program.state_dict)
    quantized = {}
    for site in find_sites(program):
        scheme = schemes if isinstance(schemes, Scheme) else schemes.get(user_path(site.name))
        if scheme is not None:
            weight = program.state_dict[site.name]
            stored = quantize(site.as_matrix(weight), scheme, tuple(weight.shape), site.transposed)
            program.state_dict[site.name] = torch.nn.Parameter(stored.dequantize(), requires_grad=False)
            quantized[site.name] = stored
    return dataclasses.replace(captured, program=program, quantized=quantized, _specialized={})


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A `constexpr` operation of a package: its type, the declared dtype of each input, and their values."""

    type: str
    dtypes: dict[str, str]
    values: dict[str, np.ndarray]


def compressed(path: Path) -> dict[str, Compressed]:
    """The compressed weights of a package, read from its weight file, by the name of the weight."""
    package = Package(path)
    found = {}
    for operation in _operations(package):
        if operation.type.startswith("constexpr_"):
            literals = {key: value for key, value in operation.attributes.items() if key != "name"}
            literals |= {key: argument.arguments[0].value for key, argument in operation.inputs.items()}
            read = {key: constant(value, key, package) for key, value in literals.items()}
            found[operation.outputs[0].name] = Compressed(
                operation.type,
                {key: type.dtype for key, (type, _) in read.items()},  # type: ignore[union-attr]
                {key: np.asarray(value()) for key, (_, value) in read.items()},
            )
    return found


def dense(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The constants of a package that are not compressed: dtype and shape by name."""
    package = Package(path)
    found = {}
    for operation in _operations(package):
        if operation.type == "const":
            type, _ = constant(operation.attributes["val"], operation.outputs[0].name, package)
            found[operation.outputs[0].name] = (getattr(type, "dtype", ""), getattr(type, "shape", ()))
    return found


def _operations(package: Package) -> list[Any]:
    function = package.spec.mlProgram.functions["main"]
    return list(function.block_specializations[function.opset].operations)
