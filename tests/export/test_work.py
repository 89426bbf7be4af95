"""What was lowered a moment ago and does not load has failed; it is not reported as a damaged bundle."""

from palmtop.export.work import Known, Work
from palmtop.runtime.manifest import Artifact, Manifest, ModelSource, TensorSpec


def test_an_artifact_that_does_not_load_has_failed(tmp_path):
    artifact = Artifact(
        target="onnx",
        path="onnx/model.onnx",
        precision="fp32",
        inputs=(TensorSpec("x", "float32", ()),),
        outputs=(TensorSpec("y", "float32", ()),),
    )
    source = ModelSource(id="m", revision=None, weights_sha256="0", architecture="M", model_type="m", license=None)
    manifest = Manifest(source=source, task="feature-extraction", artifacts=(artifact,), producer={})
    (tmp_path / "onnx").mkdir()
    (tmp_path / artifact.path).write_bytes(b"no protobuf")
    work = Work(tmp_path, manifest, {}, lambda: Known([], {}, [], 0.0), lambda what, steps: lambda: None, {})

    report = work.verify(tmp_path, [artifact])

    assert report.status == "failed"
    assert report.problems == [report.reason]
    assert report.reason.startswith("onnx/model.onnx")  # and not where it was being made
