"""Core ML for people who use `transformers.exporters`: importing this module registers the format `coreml` there.

    from transformers.exporters import AutoHfExporter, ExportedModel
    from palmtop.export.transformers_backend import CoreMLConfig

    config = CoreMLConfig(dynamic=True, precision="fp16")
    exported = AutoHfExporter.from_config(config).export(model, inputs, config)
    exported.program.save("model.mlpackage")  # for Xcode
    exported(**inputs).last_hidden_state      # Core ML on a Mac, palmtop's interpreter of ML Programs elsewhere

The capture is theirs, with all their patches; lowering and execution are those of palmtop's own bundles. There is no
parity gate here: `palmtop export` has one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..runtime.backends import get_backend
from ..runtime.backends.coreml import package_metadata
from ..runtime.errors import DamagedError, RequestError, UnsupportedError
from ..runtime.manifest import Artifact, Dim, TensorSpec
from ..runtime.session import Session
from . import hf
from .adopted import adopt, constant_outputs
from .targets import Options
from .targets import coreml as target

FORMAT = "coreml"
SIGNATURE_KEY = "palmtop.signature"
_EXPORT_MANIFEST = "export.json"  # what `save_pretrained` writes last
_LONGEST = 2048
_PRECISIONS = ("fp32", "fp16")


@dataclass
class CoreMLConfig(hf.DynamoConfig):
    """How to export to Core ML; `dynamic`, `strict` and `dynamic_shapes` are those of `DynamoConfig`.

    Args:
        precision: `fp32` or `fp16`; inputs and outputs are fp32 and int32 in either.
        minimum_ios: the oldest iOS to run on (`"15"` to `"18"`); None: 16, or 18 for a model with attention, which
            then is one operation.
        keep_fp32: paths of modules whose arithmetic stays fp32 in an fp16 program.
        longest: upper bound of axes that vary without one of their own: Core ML wants one.
    """

    export_format: str = FORMAT
    precision: str = "fp32"
    minimum_ios: str | None = None
    keep_fp32: Sequence[str] = ()
    longest: int = _LONGEST


@dataclass(frozen=True)
class CoreMLProgram:
    """A Core ML package: where it is, and what it takes and gives. A fresh export lies in a temporary folder.

    `artifact` has the signature as Core ML sees it; `dtypes` are the outputs' dtypes in PyTorch.
    """

    path: Path
    artifact: Artifact
    dtypes: tuple[str, ...]
    _folder: tempfile.TemporaryDirectory | None = dataclasses.field(default=None, repr=False, compare=False)

    def save(self, path: str | Path) -> Path:
        """Write the `.mlpackage` to a path, in place of a package that is there.

        Raises:
            RequestError: something else is there, or the name does not end in `.mlpackage`.
        """
        path = Path(path)
        if path.suffix != ".mlpackage":
            raise RequestError(f"{path}: Core ML packages are called something.mlpackage.")
        if path.exists():
            if path.resolve() == self.path.resolve():
                return path
            if not (path / "Manifest.json").is_file():
                raise RequestError(f"{path} exists and is no Core ML package. Choose another name.")
            shutil.rmtree(path)
        shutil.copytree(self.path, path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> CoreMLProgram:
        """Read what `save` wrote.

        Raises:
            DamagedError: there is no package, or it was not exported by this backend.
        """
        path = Path(path)
        if not path.is_dir():
            raise DamagedError(f"{path} is no Core ML package: there is no such folder.")
        stored = package_metadata(path).get(SIGNATURE_KEY)
        try:
            signature = json.loads(stored or "")
            artifact = _artifact(path.name, signature)
            return cls(path, artifact, tuple(signature["dtypes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"{path} was not exported by palmtop's Transformers backend: it does not say what it takes and gives. "
                "Run other packages with palmtop.runtime.mil.Program."
            ) from error


class CoreMLExporter(hf.DynamoExporter):
    """Exports a Transformers model to Core ML: `CoreMLExporter().export(model, inputs, CoreMLConfig())`."""

    export_format = FORMAT
    config_class = CoreMLConfig
    program_suffix = ".mlpackage"
    required_packages: ClassVar[list[str]] = ["torch", "coremltools"]
    tested_versions: ClassVar[dict[str, str]] = {}  # `palmtop doctor` compares versions

    def export_program(
        self, model: Any, sample_inputs: MutableMapping[str, Any], config: Any
    ) -> tuple[CoreMLProgram, Any]:
        """Trace one graph and lower it.

        Raises:
            RequestError: an option that Core ML has nothing for.
            UnsupportedError: operations that Core ML cannot express, all of them at once, each with a remedy.
        """
        _check(config)
        program, metadata = super().export_program(model, sample_inputs, config)
        metadata.out_constants = [[index, value] for index, value in constant_outputs(program).items()]
        captured = adopt(program, config.longest)
        options = Options(precision=config.precision, keep_fp32=tuple(config.keep_fp32))
        artifact = target.plan(captured, options)
        if config.minimum_ios is not None:
            artifact = target.for_system(artifact, config.minimum_ios)
        found = target.unsupported(captured, artifact)
        if found:
            lines = [f"  {entry.operation} in {entry.module or 'the model'}: {entry.remedy}." for entry in found]
            raise UnsupportedError(f"{len(found)} operations cannot be expressed in Core ML:\n" + "\n".join(lines))
        dtypes = tuple(spec.dtype for spec in captured.outputs)
        signature = json.dumps(_signature(artifact, dtypes), sort_keys=True)
        folder = tempfile.TemporaryDirectory(prefix="palmtop-")
        path = Path(folder.name) / "model.mlpackage"
        identity = hashlib.sha256(signature.encode()).hexdigest()
        target.lower(captured, artifact, identity, path, {SIGNATURE_KEY: signature})
        return CoreMLProgram(path, artifact, dtypes, folder), metadata

    @classmethod
    def save_program(cls, program: CoreMLProgram, path: Any) -> None:
        """Write the `.mlpackage`."""
        path = Path(path)
        program.save(path)
        # `save_pretrained` writes aside and moves over what is there, which folders do not allow.
        folder = path.parent.parent
        old = folder / path.name
        if path.parent.name.startswith(tempfile.gettempprefix()) and (folder / _EXPORT_MANIFEST).is_file():
            shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load_program(cls, path: Any) -> CoreMLProgram:
        """Read an `.mlpackage` that `save_program` wrote."""
        return CoreMLProgram.load(path)

    @classmethod
    def program_files(cls, filename: str) -> list[str]:
        """The files of the package: `save_pretrained` and the hub know files, not folders."""
        data = f"{filename}/Data/com.apple.CoreML"
        return [f"{filename}/Manifest.json", f"{data}/model.mlmodel", f"{data}/weights/weight.bin"]


class CoreMLRunner(hf.ModelRunner):
    """Runs a package: with Core ML on a Mac, with palmtop's interpreter of ML Programs elsewhere (see `engine`)."""

    def __init__(self, program: CoreMLProgram, metadata: Any):
        super().__init__(metadata)
        self._program = program  # a fresh export lives as long as its temporary folder
        self._in_spec = hf.load_treespec(metadata.in_spec)
        self._session = Session(program.artifact, get_backend(FORMAT).open(program.path, program.artifact, None))
        self._session.splits_batch = False  # a traced batch of one is what the caller asked for

    @property
    def engine(self) -> str:
        """What executes the package, as reports say it."""
        return self._session.engine

    @property
    def device(self) -> torch.device:
        """Tensors come from and go to the CPU, whatever Core ML computes on."""
        return torch.device("cpu")

    @classmethod
    def from_program(cls, program: CoreMLProgram, metadata: Any, device: Any = None) -> CoreMLRunner:
        """A runner for a package.

        Raises:
            RequestError: a device other than the CPU: Core ML chooses by itself.
        """
        if device is not None and torch.device(device).type != "cpu":
            raise RequestError(f"Core ML places a model by itself; ask for no device, or 'cpu', not '{device}'.")
        return cls(program, metadata)

    def __call__(self, share_inputs: bool = True, share_outputs: bool = False, **kwargs: Any) -> Any:
        """What the source model returns, in its dtypes. Nothing is shared: Core ML has dtypes of its own.

        Raises:
            RequestError: a missing input, or a shape that the program does not take.
        """
        given = {**self.metadata.in_constants, **kwargs}
        missing = [name for name in self.metadata.kwargs if name not in given]
        if missing:
            raise RequestError(f"Missing input {', '.join(missing)}: the export was traced with it.")
        leaves = hf.flat_inputs(given, self._in_spec)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        specs = self._program.artifact.inputs
        if len(tensors) != len(specs):
            raise RequestError(f"The program takes {len(specs)} tensors, {len(tensors)} were given.")
        feeds = {spec.name: _array(tensor, spec) for spec, tensor in zip(specs, tensors, strict=True)}
        outputs = self._session.run(feeds)
        results = [
            torch.from_numpy(np.array(outputs[spec.name])).to(getattr(torch, dtype))
            for spec, dtype in zip(self._program.artifact.outputs, self._program.dtypes, strict=True)
        ]
        return self.unflatten(results)


def _array(tensor: torch.Tensor, spec: TensorSpec) -> np.ndarray:
    array = tensor.detach().cpu()
    if array.dtype == torch.bfloat16:  # numpy has none
        array = array.float()
    if spec.dtype == "int32" and array.dtype == torch.int64 and array.numel():
        limits = torch.iinfo(torch.int32)
        if array.max() > limits.max or array.min() < limits.min:
            raise RequestError(f"Input '{spec.name}' has values beyond int32, which is what Core ML takes.")
    return array.numpy()


def _check(config: CoreMLConfig) -> None:
    if config.precision not in _PRECISIONS:
        raise RequestError(f"Unknown precision '{config.precision}' for Core ML. Known: {', '.join(_PRECISIONS)}.")
    if config.quantizer is not None:
        raise RequestError(
            f"{type(config.quantizer).__name__} does not quantize Core ML programs. Leave `quantizer` out; "
            "`palmtop export --quantize` has schemes for Core ML."
        )
    if config.keep_fp32 and config.precision != "fp16":
        raise RequestError("keep_fp32 names exceptions of an fp16 program; precision is fp32.")
    if config.longest < 1:
        raise RequestError(f"longest is the upper bound of axes: at least 1, not {config.longest}.")


def _signature(artifact: Artifact, dtypes: Sequence[str]) -> dict[str, Any]:
    return {
        "precision": artifact.precision,
        "minimum_os": artifact.minimum_os,
        "inputs": [_plain(spec) for spec in artifact.inputs],
        "outputs": [_plain(spec) for spec in artifact.outputs],
        "dtypes": list(dtypes),
    }


def _plain(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "dims": [dim.to_json() for dim in spec.dims]}


def _artifact(path: str, signature: Mapping[str, Any]) -> Artifact:
    def specs(entries: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(e["name"], e["dtype"], tuple(map(Dim.from_json, e["dims"]))) for e in entries)

    return Artifact(
        target=FORMAT,
        path=path,
        precision=signature["precision"],
        inputs=specs(signature["inputs"]),
        outputs=specs(signature["outputs"]),
        minimum_os=dict(signature["minimum_os"]),
        methods={"forward": "main"},
    )


hf.register_backend(CoreMLExporter, CoreMLRunner)
