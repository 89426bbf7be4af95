"""Core ML packages hold a plan's integers, once each and unchanged, and compute what the integers stand for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from palmtop.export.targets import Options, get_target
from palmtop.quantize.scheme import Scheme
from palmtop.runtime.errors import RequestError
from palmtop.runtime.manifest import Dim
from palmtop.runtime.mil import Program
from palmtop.runtime.mil.blobs import unpack

from .coreml_models import BATCH, IDENTITY, SEQUENCE, Call, captured_module, kinds
from .integers import compressed, dense, with_integers

TARGET = get_target("coreml")
INT8, INT4 = Scheme(8), Scheme(4, "block", 32)
SCHEMES = {
    "int8 per channel": INT8,
    "int8 per tensor": Scheme(8, "tensor"),
    "int8 per block, asymmetric": Scheme(8, "block", 32, symmetric=False),
    "int8 per channel, asymmetric": Scheme(8, symmetric=False),
    "int4 per block": INT4,
    "int4 per block, asymmetric": Scheme(4, "block", 32, symmetric=False),
    "int4 per channel": Scheme(4),
}
IDS = {"x": np.random.default_rng(0).integers(0, 96, (1, 9))}


class Tied(torch.nn.Module):
    """A table that is also the last layer, as in language models; a linear layer; a matrix that lies transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(96, 64)
        self.table.weight.data *= 0.3
        self.up = torch.nn.Linear(64, 128)
        self.down = torch.nn.Parameter(torch.randn(128, 64) * 0.1)
        self.bias = torch.nn.Parameter(torch.randn(64) * 0.1)
        self.head = torch.nn.Linear(64, 96, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.table(x)
        hidden = hidden + torch.addmm(self.bias, torch.tanh(self.up(hidden)).reshape(-1, 128), self.down).reshape(
            hidden.shape
        )
        return self.head(hidden)


def captured(module, *dims, outputs=("y",), dtype="float32"):
    torch.manual_seed(3)
    return captured_module(module() if isinstance(module, type) else module, dims, outputs, dtype)


@pytest.fixture(scope="module")
def tied():
    torch.manual_seed(3)
    return captured_module(Tied(), (BATCH, SEQUENCE), ("y",), "int64")


def lower(quantized, path, options=None, **settings):
    """Lower as planned, `settings` put into the artifact's quantization."""
    artifact = TARGET.plan(quantized, options or Options(precision="int8"))
    artifact = dataclasses.replace(artifact, quantization={**(artifact.quantization or {}), **settings})
    TARGET.lower(quantized, artifact, IDENTITY, path)
    return Program.load(path)


def reference(quantized, feeds):
    """What the fp32 program gives whose weights are those that the integers stand for."""
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    with torch.no_grad():
        return quantized.program.module()(**tensors)


def error(program, quantized, feeds):
    got, want = program.predict(feeds), reference(quantized, feeds)
    want = want if isinstance(want, (tuple, list)) else [want]
    return max(
        float(np.abs(got[spec.name] - value.numpy()).max() / value.abs().max())
        for spec, value in zip(quantized.outputs, want, strict=True)
    )


def assert_holds(path, quantized):
    """The package has every weight once, with the plan's integers, zero points and scales, and none of them dense."""
    found = compressed(path)
    assert len(found) == len(quantized.quantized)
    sizes = {weight.integers.numel() for weight in quantized.quantized.values()}
    assert not [shape for _, shape in dense(path).values() if np.prod(shape) in sizes]
    for name, weight in quantized.quantized.items():
        entry = found["quantized__" + name.removeprefix("model.").replace(".", "_")]
        data = entry.values["data" if "data" in entry.values else "quantized_data"]
        np.testing.assert_array_equal(data.reshape(weight.integers.shape), weight.integers.numpy())
        assert set(entry.dtypes.values()) <= {"int8" if weight.scheme.bits == 8 else "int4", "fp16", "fp32", "int32"}
        scales, zeros = entry.values["scale"], entry.values.get("offset", entry.values.get("zero_point"))
        expected = weight.scales.numpy().astype(np.float16 if entry.dtypes["scale"] == "fp16" else np.float32)
        rows = np.broadcast_to(scales.reshape(-1, expected.shape[1]), expected.shape)
        np.testing.assert_array_equal(rows, expected.astype(np.float32))
        if weight.zero_points is not None:
            points = np.broadcast_to(np.asarray(zeros).reshape(-1, expected.shape[1]), expected.shape)
            np.testing.assert_array_equal(points, weight.zero_points.numpy())


# --- the same integers, the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_a_package_holds_the_integers_and_computes_in_fp16_what_they_stand_for(tied, tmp_path, name):
    quantized = with_integers(tied, SCHEMES[name])
    assert len(quantized.quantized) == 3
    program = lower(quantized, tmp_path / "m.mlpackage")
    assert_holds(tmp_path / "m.mlpackage", quantized)
    assert (kinds(program).count("linear"), kinds(program).count("gather")) == (3, 1)
    assert error(program, quantized, IDS) < 2e-3


@pytest.mark.parametrize("name", ["int8 per channel", "int4 per block, asymmetric"])
def test_computing_in_fp32_leaves_nothing_but_the_order_of_sums(tied, tmp_path, name):
    quantized = with_integers(tied, SCHEMES[name])
    program = lower(quantized, tmp_path / "m.mlpackage", compute="fp32")
    assert_holds(tmp_path / "m.mlpackage", quantized)
    assert error(program, quantized, IDS) < 2e-6


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize(("granularity", "block", "ios"), [("tensor", None, "16.0"), ("block", 16, "18.0")])
def test_palettes_are_tables_and_the_places_in_them(tied, tmp_path, bits, granularity, block, ios):
    """In fp16 the numbers of a table are those of dense weights: rounded once each."""
    quantized = with_integers(tied, Scheme(bits, granularity, block, form="palette"))
    artifact = TARGET.plan(quantized, Options(precision="mixed"))
    assert artifact.minimum_os["ios"] == ios
    program = lower(quantized, tmp_path / "m.mlpackage")
    found = compressed(tmp_path / "m.mlpackage")
    assert len(found) == 3
    for name, weight in quantized.quantized.items():
        entry = found["quantized__" + name.replace(".", "_")]
        assert entry.type == "constexpr_lut_to_dense"
        indices = entry.values["indices"]
        if ios == "16.0":
            assert tuple(entry.values["shape"]) == tuple(weight.integers.shape)
            indices = unpack(indices, f"uint{bits}", weight.integers.numel()) if bits < 8 else indices
        else:
            assert entry.dtypes["indices"] == f"uint{bits}"
        np.testing.assert_array_equal(indices.reshape(weight.integers.shape), weight.integers.numpy())
        tables = entry.values["lut"].reshape(weight.palette.shape)
        np.testing.assert_array_equal(tables, weight.palette.numpy().astype(np.float16).astype(np.float32))
    assert error(program, quantized, IDS) < 2e-3


def test_convolutions_take_palettes(tmp_path):
    layer = torch.nn.Conv2d(16, 32, 3)
    plain = captured(Call(lambda self, x: self.layer(x), layer=layer), BATCH, *map(_size, (16, 8, 8)))
    quantized = with_integers(plain, Scheme(4, "block", 8, form="palette"))
    program = lower(quantized, tmp_path / "m.mlpackage", compute="fp32")
    assert len(compressed(tmp_path / "m.mlpackage")) == 1
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float32)}
    assert error(program, quantized, feeds) < 2e-6


def test_a_plan_may_mix_widths_and_leave_weights_alone(tied, tmp_path):
    quantized = with_integers(tied, {"up.weight": INT8, "head.weight": INT4})
    program = lower(quantized, tmp_path / "m.mlpackage", Options(precision="mixed"))
    found = compressed(tmp_path / "m.mlpackage")
    assert {name: entry.dtypes["data"] for name, entry in found.items()} == {
        "quantized__up_weight": "int8",
        "quantized__head_weight": "int4",
    }
    assert ("fp16", (64, 128)) in dense(tmp_path / "m.mlpackage").values()  # `down` lies as linear layers have it
    assert error(program, quantized, IDS) < 2e-3


def test_what_the_interface_has_is_what_an_fp16_artifact_has(tied, tmp_path):
    quantized = with_integers(tied, INT8)
    program = lower(quantized, tmp_path / "m.mlpackage")
    assert (program.input_features["x"].dtype, program.output_features["y"].dtype) == ("int32", "fp32")


@pytest.mark.parametrize("block", [None, 36, 9])
def test_convolutions_and_the_normalisation_after_them(tmp_path, block):
    """A normalisation multiplied into the weights would make other weights of them, and no integers."""
    network = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU())
    torch.manual_seed(5)
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)
    network[1].weight.data.uniform_(-1, 1)
    plain = captured(Call(lambda self, x: self.network(x), network=network), BATCH, *map(_size, (16, 8, 8)))
    quantized = with_integers(plain, INT8)
    if block is not None:
        name, weight = next(iter(quantized.quantized.items()))
        scheme = Scheme(8, "block", block)
        scales = weight.scales.expand(-1, 144 // block) * torch.linspace(0.5, 1, 144 // block)
        weight = dataclasses.replace(weight, scheme=scheme, scales=scales.contiguous())
        quantized.program.state_dict[name] = torch.nn.Parameter(weight.dequantize(), requires_grad=False)
        quantized = dataclasses.replace(quantized, quantized={name: weight})
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float32)}
    program = lower(quantized, tmp_path / "m.mlpackage", compute="fp32")
    assert_holds(tmp_path / "m.mlpackage", quantized)
    assert kinds(program) == ["conv", "batch_norm", "relu"]
    assert error(program, quantized, feeds) < 2e-6


def _size(size: int) -> Dim:
    return Dim(size=size)


@pytest.mark.parametrize(
    "scheme", [Scheme(4, "block", 16, symmetric=False), Scheme(8), Scheme(6, "block", 8, form="palette")], ids=str
)
def test_a_weight_that_a_program_has_transposed_is_stored_transposed(scheme):
    from palmtop.export.targets.coreml_compat import compatible

    with compatible():
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb
        from palmtop.export.targets.coreml_quantize import Weights, store_integers

        plain = captured(Call(lambda self, x: self.layer(x), layer=torch.nn.Linear(64, 96)), BATCH, Dim(size=64))
        weights = Weights(with_integers(plain, scheme).quantized)
        (weight,) = weights.quantized.values()
        value = weight.dequantize().numpy()

        @mb.program(input_specs=[mb.TensorSpec((1, 64))], opset_version=ct.target.iOS18)
        def program(x):
            return mb.matmul(x=x, y=np.ascontiguousarray(value.T), name="y")

        assert list(store_integers(program, weights)) == ["quantized__layer_weight__transposed"]
        function = program.functions["main"]
        (operation,) = (entry for entry in function.operations if entry.op_type.startswith("constexpr_"))
        np.testing.assert_array_equal(operation.materialized_val_inference(), value.T)
        stored = operation.indices if scheme.form == "palette" else operation.data
        np.testing.assert_array_equal(stored.val, weight.integers.numpy().T)


# --- precision -------------------------------------------------------------------------------------------------------


def test_modules_to_keep_in_fp32_have_fp32_scales(tied, tmp_path):
    quantized = with_integers(tied, INT8)
    lower(quantized, tmp_path / "m.mlpackage", Options(precision="int8", keep_fp32=("up",)))
    found = compressed(tmp_path / "m.mlpackage")
    assert found["quantized__up_weight"].dtypes["scale"] == "fp32"
    assert found["quantized__down"].dtypes["scale"] == "fp16"
    assert_holds(tmp_path / "m.mlpackage", quantized)


def test_a_layer_whose_scales_fp16_cannot_hold_is_computed_in_fp32(tmp_path):
    layer = torch.nn.Linear(64, 96, bias=False)
    plain = captured(Call(lambda self, x: 1e6 * self.layer(x), layer=layer), BATCH, Dim(size=64))
    layer.weight.data *= 1e-5
    plain = captured(Call(lambda self, x: 1e6 * self.layer(x), layer=layer), BATCH, Dim(size=64))
    quantized = with_integers(plain, INT8)
    program = lower(quantized, tmp_path / "m.mlpackage")
    assert compressed(tmp_path / "m.mlpackage")["quantized__layer_weight"].dtypes["scale"] == "fp32"
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)}
    assert error(program, quantized, feeds) < 2e-3


def test_the_same_plan_gives_the_same_bytes(tied, tmp_path):
    quantized = with_integers(tied, INT4)
    for name in ("a", "b"):
        lower(quantized, tmp_path / name)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# --- systems ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "ios", "operation"),
    [
        (INT8, "16.0", "constexpr_affine_dequantize"),
        (Scheme(8, "tensor", symmetric=False), "16.0", "constexpr_affine_dequantize"),
        (Scheme(8, "block", 32), "18.0", "constexpr_blockwise_shift_scale"),
        (Scheme(4), "18.0", "constexpr_blockwise_shift_scale"),
    ],
)
def test_the_oldest_system_is_the_one_that_has_the_operation(tied, tmp_path, scheme, ios, operation):
    quantized = with_integers(tied, scheme)
    assert TARGET.plan(quantized, Options(precision="int8")).minimum_os["ios"] == ios
    lower(quantized, tmp_path / "m.mlpackage")
    assert {entry.type for entry in compressed(tmp_path / "m.mlpackage").values()} == {operation}


def test_an_older_system_than_the_scheme_needs_is_refused(tied, tmp_path):
    from palmtop.export.targets.coreml import for_system

    quantized = with_integers(tied, {"up.weight": INT4})
    artifact = for_system(TARGET.plan(quantized, Options(precision="int4")), "17")
    with pytest.raises(RequestError, match=r"up\.weight: int4 per block of 32 needs iOS 18, not 17.*int8 per channel"):
        TARGET.lower(quantized, artifact, IDENTITY, tmp_path / "m.mlpackage")


def test_tables_for_groups_of_rows_are_refused_on_older_systems(tied, tmp_path):
    from palmtop.export.targets.coreml import for_system

    quantized = with_integers(tied, {"up.weight": Scheme(6, "block", 16, form="palette")})
    artifact = for_system(TARGET.plan(quantized, Options(precision="mixed")), "16")
    with pytest.raises(RequestError, match=r"up\.weight: palette6 .* needs iOS 18, not 16.*palette6 per tensor"):
        TARGET.lower(quantized, artifact, IDENTITY, tmp_path / "m.mlpackage")


def test_blocks_that_cut_a_convolutions_kernel_are_refused():
    layer = torch.nn.Conv2d(16, 32, 3)
    plain = captured(Call(lambda self, x: self.layer(x), layer=layer), BATCH, *map(_size, (16, 8, 8)))
    quantized = with_integers(plain, Scheme(8, "block", 16))
    with pytest.raises(RequestError, match=r"layer\.weight: .* 9 weights each.*nearest: int8 per channel"):
        TARGET.plan(quantized, Options(precision="int8"))
