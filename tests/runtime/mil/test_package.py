"""A package that is truncated, altered or of another kind is refused by an error that names what is wrong."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from palmtop.runtime.errors import DamagedError, PalmtopError, RequestError, UnsupportedError
from palmtop.runtime.mil import Program
from palmtop.runtime.mil.schema import Model

from .build import Builder, literal, set_type, write


def linear(path):
    b = Builder()
    b.input("x", "fp16", (1, 32))
    weight = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float16)
    b.op("linear", ("fp16", (1, 8)), x="x", weight=b.const(b.blob(weight)), name="y")
    return b.save(path, "y")


@pytest.fixture
def package(tmp_path):
    return linear(tmp_path / "m.mlpackage")


def model_file(package):
    return package / "Data" / "com.apple.CoreML" / "model.mlmodel"


def weight_file(package):
    return package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def alter(package, change):
    """Change the model message in place."""
    spec = Model.FromString(model_file(package).read_bytes())
    change(spec)
    model_file(package).write_bytes(spec.SerializeToString())


def operations(spec):
    return spec.mlProgram.functions["main"].block_specializations["CoreML8"].operations


def refused(package, kind, message):
    with pytest.raises(kind, match=message):
        Program.load(package)


def test_missing_package_is_a_wrong_request(tmp_path):
    refused(tmp_path / "none.mlpackage", RequestError, "no such file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", RequestError, "no Manifest.json")


def test_model_file_alone_can_be_loaded(package):
    assert Program.load(model_file(package)).inputs == {"x": (1, 32)}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"rootModelIdentifier": "A", "itemInfoEntries": {}}', "[" * 10**5]
)
def test_damaged_manifest(package, text):
    (package / "Manifest.json").write_text(text)
    refused(package, DamagedError, "Manifest.json")


@pytest.mark.parametrize("path", ["../../outside", "/etc/hostname", "com.apple.CoreML/../../../outside", "", 7, None])
def test_manifest_that_leads_out_of_the_package(package, path):
    (package.parent / "outside").write_bytes(b"")
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"]["A"]["path"] = path
    (package / "Manifest.json").write_text(json.dumps(manifest))
    refused(package, DamagedError, "leads out of the package|not a path")


def test_symbolic_link_that_leads_out_of_the_package(package, tmp_path):
    moved = tmp_path / "elsewhere.mlmodel"
    model_file(package).rename(moved)
    model_file(package).symlink_to(moved)
    refused(package, DamagedError, "leads out of the package")


def test_package_in_a_hugging_face_cache_is_made_of_links_to_its_blobs(tmp_path):
    package = linear(tmp_path / "models--a--b" / "snapshots" / "abc" / "m.mlpackage")
    (tmp_path / "models--a--b" / "blobs").mkdir()
    for i, file in enumerate((model_file(package), weight_file(package))):
        blob = tmp_path / "models--a--b" / "blobs" / str(i)
        file.rename(blob)
        file.symlink_to(blob)
    assert Program.load(package).predict({"x": np.ones((1, 32))})["y"].shape == (1, 8)


@pytest.mark.parametrize("keep", [0, 1, 10, 0.5, 0.9, -1])
def test_truncated_model(package, keep):
    data = model_file(package).read_bytes()
    model_file(package).write_bytes(data[: int(len(data) * keep) if 0 < keep < 1 else keep])
    refused(package, DamagedError, r"model.mlmodel|nothing defines|no block|not in both|missing|has no")


def test_something_else_than_a_model(package):
    model_file(package).write_bytes(b"PK\x03\x04" * 100)
    refused(package, DamagedError, "not a Core ML model")


def test_neural_network_is_named_with_the_remedy(package):
    model_file(package).write_bytes(Model(specificationVersion=4, neuralNetwork=b"").SerializeToString())
    refused(package, UnsupportedError, r'of type neuralNetwork; only ML Programs.*convert_to="mlprogram"')


def test_unknown_operation_is_named(package):
    alter(package, lambda s: setattr(operations(s)[1], "type", "telepathy"))
    refused(package, UnsupportedError, r"operation y \(telepathy\): the interpreter does not know this operation")


def test_operation_of_a_newer_opset_is_refused(tmp_path):
    b = Builder(opset="CoreML5")
    b.input("x", "fp16", (1, 2, 2))
    b.op("scaled_dot_product_attention", ("fp16", (1, 2, 2)), query="x", key="x", value="x", name="y")
    refused(b.save(tmp_path / "m.mlpackage", "y"), DamagedError, "not part of this program's opset CoreML5")


def test_unknown_opset(package):
    def change(spec):
        function = spec.mlProgram.functions["main"]
        function.block_specializations["CoreML99"].CopyFrom(function.block_specializations["CoreML8"])
        function.opset = "CoreML99"

    alter(package, change)
    refused(package, UnsupportedError, "opset 'CoreML99'")


def test_unknown_function(package):
    with pytest.raises(RequestError, match="no function 'prefill'; it has main"):
        Program.load(package, function="prefill")


ALTERATIONS = {
    "input that nothing defines": (
        lambda s: setattr(operations(s)[1].inputs["x"].arguments[0], "name", "ghost"),
        r"operation y \(linear\), input x, refers to 'ghost'",
    ),
    "input with an unknown name": (
        lambda s: operations(s)[1].inputs["wait"].CopyFrom(operations(s)[1].inputs["x"]),
        "has no input called wait",
    ),
    "missing input": (lambda s: operations(s)[1].inputs.pop("weight"), "its input weight is missing"),
    "value defined twice": (lambda s: setattr(operations(s)[1].outputs[0], "name", "x"), "x is defined twice"),
    "output that does not exist": (
        lambda s: setattr(s.description.output[0], "name", "z"),
        "output [yz] is not in both the program and its description",
    ),
    "input that does not exist": (lambda s: setattr(s.description.input[0], "name", "z"), "input [xz] is not in both"),
    "unknown data type": (
        lambda s: setattr(operations(s)[1].outputs[0].type.tensorType, "dataType", 99),
        "unknown data type number 99",
    ),
    "rank that contradicts the dimensions": (
        lambda s: setattr(operations(s)[1].outputs[0].type.tensorType, "rank", 5),
        "declares rank 5 with 2 dimensions",
    ),
    "huge count": (
        lambda s: setattr(operations(s)[1].outputs[0].type.tensorType.dimensions[0].constant, "size", 2**60),
        "more elements than any model can hold",
    ),
    "huge constant": (
        lambda s: setattr(operations(s)[0].attributes["val"].type.tensorType.dimensions[0].constant, "size", 2**62),
        "more elements than any model can hold",
    ),
    "constant larger than its blob": (
        lambda s: setattr(operations(s)[0].attributes["val"].type.tensorType.dimensions[0].constant, "size", 9),
        r"holds 512 bytes, but fp16\[9, 32\] needs 576",
    ),
    "constant of another type than its blob": (
        lambda s: setattr(operations(s)[0].attributes["val"].type.tensorType, "dataType", 22),
        r"holds fp16, but int16\[8, 32\] is declared",
    ),
    "constant with unknown dimensions": (
        lambda s: operations(s)[0].attributes["val"].type.tensorType.dimensions[0].unknown.SetInParent(),
        "has unknown dimensions",
    ),
    "constant that is declared otherwise": (
        lambda s: setattr(operations(s)[0].outputs[0].type.tensorType, "dataType", 11),
        r"declared fp32\[8, 32\], but its value is fp16\[8, 32\]",
    ),
    "no block for the opset": (
        lambda s: setattr(s.mlProgram.functions["main"], "opset", "CoreML7"),
        "function main: has no block for its opset 'CoreML7'",
    ),
    "no default function": (
        lambda s: setattr(s.description.functions.add(name="other"), "name", "other"),
        "default function '' is missing",
    ),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_altered_model(package, name):
    change, message = ALTERATIONS[name]
    alter(package, change)
    refused(package, DamagedError, message)


@pytest.mark.parametrize(
    "file",
    [
        "@model_path/../../../outside.bin",
        "/etc/passwd",
        "weights/weight.bin",
        "@model_path//etc/passwd",
        "@model_path/x",
    ],
)
def test_weight_file_elsewhere(package, file):
    (package.parent / "outside.bin").write_bytes(weight_file(package).read_bytes())
    alter(package, lambda s: setattr(operations(s)[0].attributes["val"].blobFileValue, "fileName", file))
    refused(package, DamagedError, "refused|missing from the package|leads out")


@pytest.mark.parametrize("offset", [0, 1, 63, 65, 128, 10**6, 2**64 - 64, 2**63])
def test_offset_with_no_blob(package, offset):
    alter(package, lambda s: setattr(operations(s)[0].attributes["val"].blobFileValue, "offset", offset))
    refused(package, DamagedError, "constant const_1: weight file weight.bin")


@pytest.mark.parametrize("keep", [0, 10, 63, 64, 100, 128, 600])
def test_truncated_weights(package, keep):
    weight_file(package).write_bytes(weight_file(package).read_bytes()[:keep])
    refused(package, DamagedError, "truncated|cannot map|no record")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (0, 0xDEADBEEE, "no blob record"),
        (1, 2, "holds fp32"),
        (1, 77, "holds type number 77"),
        (2, 2**63, "needs 512"),
        (3, 2**63, "truncated"),
        (3, 64, "truncated"),
        (3, 130, "truncated"),
        (4, 2**40, "needs"),
    ],
)
def test_altered_blob_record(package, field, value, message):
    data = bytearray(weight_file(package).read_bytes())
    record = list(struct.unpack_from("<IIQQQ", data, 64))
    record[field] = value
    struct.pack_into("<IIQQQ", data, 64, *record)
    weight_file(package).write_bytes(data)
    refused(package, DamagedError, message)


def test_weight_file_of_another_version(package):
    data = bytearray(weight_file(package).read_bytes())
    data[4] = 1
    weight_file(package).write_bytes(data)
    refused(package, DamagedError, "version 1, expected 2")


def test_inline_value_with_too_few_elements(tmp_path):
    b = Builder()
    b.input("x", "fp32", (4,))
    value = literal(np.ones(4, np.float32))
    del value.immediateValue.tensor.floats.values[3:]
    b.op("add", ("fp32", (4,)), x="x", y=b.const(value), name="y")
    refused(b.save(tmp_path / "m.mlpackage", "y"), DamagedError, r"constant const_1: 3 values do not make fp32\[4\]")


def test_inline_value_in_the_wrong_field(tmp_path):
    b = Builder()
    b.input("x", "fp32", (4,))
    value = literal(np.ones(4, np.int32))
    value.type.tensorType.dataType = 11
    b.op("add", ("fp32", (4,)), x="x", y=b.const(value), name="y")
    refused(b.save(tmp_path / "m.mlpackage", "y"), DamagedError, "stored as ints cannot be fp32")


def test_a_result_too_large_for_memory_is_an_error(tmp_path):
    b = Builder()
    b.input("x", "fp32", (1,))
    b.op("fill", ("fp32", (None, None, None)), shape=np.full(3, 2**31 - 1, np.int32), value=1.0, name="y")
    program = Program.load(b.save(tmp_path / "m.mlpackage", "y"))
    with pytest.raises(PalmtopError, match=r"y \(fill\)"):
        program.predict({"x": [0]})


def test_random_damage_never_gives_anything_but_our_errors(tmp_path):
    """A few hundred altered bytes in the model: it is refused, or it still executes; nothing else happens."""
    package = linear(tmp_path / "m.mlpackage")
    original = model_file(package).read_bytes()
    rng = np.random.default_rng(1)
    refusals = 0
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        model_file(package).write_bytes(data)
        try:
            Program.load(package).predict({"x": np.ones((1, 32))})
        except PalmtopError:
            refusals += 1
    assert refusals > 200


def test_schema_has_the_field_numbers_and_types_of_apples_protobufs():
    script = """
import sys, types, importlib.util, pathlib
from google.protobuf.descriptor import FieldDescriptor as F
folder = importlib.util.find_spec("coremltools").submodule_search_locations[0]
package = types.ModuleType("coremltools"); package.__path__ = [folder]; sys.modules["coremltools"] = package
from coremltools.proto import FeatureTypes_pb2, MIL_pb2, Model_pb2
from palmtop.runtime.mil.schema import MESSAGES
theirs = {}
def walk(messages):
    for message in messages:
        theirs.setdefault(message.name, message)
        walk(message.nested_types)
for module in (Model_pb2, FeatureTypes_pb2, MIL_pb2):
    walk(module.DESCRIPTOR.message_types_by_name.values())
SAME = {F.TYPE_ENUM: F.TYPE_INT32}
checked = 0
for name, ours in MESSAGES.items():
    if name == "Empty":
        continue
    for field in ours.DESCRIPTOR.fields:
        other = theirs[name].fields_by_number[field.number]
        assert (other.name, other.is_repeated) == (field.name, field.is_repeated), (name, field.name)
        assert (other.containing_oneof is None) == (field.containing_oneof is None), (name, field.name)
        if field.type == F.TYPE_BYTES:
            assert other.type in (F.TYPE_BYTES, F.TYPE_MESSAGE), (name, field.name)
        else:
            assert SAME.get(other.type, other.type) == field.type, (name, field.name)
        checked += 1
print(checked)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 150


def test_both_schemas_live_in_one_process():
    """coremltools registers the same message names; ours are in a pool of their own."""
    script = (
        "import palmtop.runtime.mil.schema as ours, sys, types, importlib.util\n"
        "folder = importlib.util.find_spec('coremltools').submodule_search_locations[0]\n"
        "package = types.ModuleType('coremltools'); package.__path__ = [folder]; sys.modules['coremltools'] = package\n"
        "from coremltools.proto import Model_pb2\n"
        "m = Model_pb2.Model(specificationVersion=7); m.mlProgram.version = 1\n"
        "assert ours.Model.FromString(m.SerializeToString()).mlProgram.version == 1\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_write_is_what_the_tests_believe(tmp_path):
    """The builder's own packages load: the refusals above are not its fault."""
    package = linear(tmp_path / "m.mlpackage")
    data = model_file(package).read_bytes()
    again = write(tmp_path / "n.mlpackage", data, weight_file(package).read_bytes())
    feeds = {"x": np.ones((1, 32))}
    np.testing.assert_array_equal(Program.load(again).predict(feeds)["y"], Program.load(package).predict(feeds)["y"])


def test_type_without_content_is_refused(package):
    alter(package, lambda s: operations(s)[1].outputs[0].ClearField("type"))
    refused(package, DamagedError, "has no type")


def test_state_of_unknown_shape_is_refused(package):
    def change(spec):
        entry = spec.mlProgram.functions["main"].inputs.add(name="s")
        set_type(entry.type.stateType.wrappedType, "fp16", (None,))

    alter(package, change)
    refused(package, DamagedError, "a state must be a tensor of fixed shape")
