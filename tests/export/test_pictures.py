"""The whole way for pictures: a checkpoint, exported and verified, gives what transformers.pipeline gives for files."""

import json
import shutil

import numpy as np
import pytest
import transformers
from palmtop.export import export_checkpoint
from palmtop.export.cli import main
from palmtop.export.image_input import image_input
from palmtop.export.inputs.pictures import photo
from palmtop.runtime import load
from palmtop.runtime.bundle import Bundle
from palmtop.runtime.errors import DamagedError, RequestError
from palmtop.runtime.manifest import Dim, TensorSpec
from palmtop.runtime.mil import Program
from palmtop.runtime.verify import verify_bundle

from ..support.pictures import KINDS, LABELS, SIDE, picture_checkpoint

ALL = ("onnx", "coreml", "executorch")
TASKS = {
    "vit": "image-classification",
    "vit states": "feature-extraction",
    "vit hidden": "masked-im",
    "segformer": "image-segmentation",
    "yolos": "object-detection",
    "detr": "object-detection",
    "glpn": "depth-estimation",
    "clip": "zero-shot-image-classification",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    photo(11, 60, 80).save(folder / "lying.jpg")
    photo(12, 90, 50).save(folder / "upright.png")
    return [folder / "lying.jpg", folder / "upright.png"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoint and bundle of a kind, made once: for ViT in every format, for the others in ONNX."""
    root, found = tmp_path_factory.mktemp("pictures"), {}

    def make(kind):
        if kind not in found:
            checkpoint = picture_checkpoint(root / kind, kind)
            targets = ALL if kind == "vit" else ("onnx",)
            result = export_checkpoint(checkpoint, root / f"{kind}.bundle", task=TASKS[kind], to=targets)
            found[kind] = checkpoint, result
        return found[kind]

    return make


def theirs(kind, checkpoint, task=None):
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    return transformers.pipeline(task or TASKS[kind], str(checkpoint), image_processor=processor, device="cpu")


def test_every_kind_is_tested():
    assert set(TASKS) == set(KINDS)


@pytest.mark.parametrize("target", ALL)
def test_classes_of_pictures_are_those_of_transformers_in_every_format(made, files, target):
    checkpoint, result = made("vit")
    classify, reference = load(result.path, target), theirs("vit", checkpoint)
    for file in files:
        found, wanted = classify(str(file)), reference(str(file), top_k=None)
        assert [label.label for label in found] == [entry["label"] for entry in wanted]
        assert [label.score for label in found] == pytest.approx([entry["score"] for entry in wanted], abs=1e-5)
    assert [label.label for label in classify(files)[1]] == [label.label for label in classify(files[1])]


@pytest.mark.parametrize("kind", ["yolos", "detr"])
def test_boxes_are_those_of_transformers_in_pixels(made, files, kind):
    checkpoint, result = made(kind)
    detect, reference = load(result.path), theirs(kind, checkpoint)
    for file in files:
        found = detect(file, threshold=0.0)
        if kind == "detr":  # the bundle's pictures are padded to one size, with a mask: so are theirs
            reference.image_processor.pad_size = transformers.image_utils.SizeDict(height=48, width=48)
        wanted = reference(str(file), threshold=0.0)
        assert len(found) == len(wanted) > 0
        for one, other in zip(found, wanted, strict=True):
            assert one.label == other["label"]
            assert one.score == pytest.approx(other["score"], abs=1e-5)
            # A box that ends at a whole pixel in exact arithmetic may be cut to either side of it.
            assert list(one.box.to_dict().values()) == pytest.approx(list(other["box"].values()), abs=1)


def test_masks_are_those_of_transformers_in_the_size_of_the_picture(made, files):
    checkpoint, result = made("segformer")
    segment, reference = load(result.path), theirs("segformer", checkpoint)
    for file in files:
        found, wanted = segment(file), reference(str(file))
        assert [region.label for region in found] == [entry["label"] for entry in wanted]
        for region, entry in zip(found, wanted, strict=True):
            mask = np.asarray(entry["mask"])
            assert region.mask.shape == mask.shape
            assert (region.mask != mask).mean() < 1e-3  # pixels between two classes of equal score


def test_depths_are_those_of_transformers(made, tmp_path):
    """GLPN takes any size; its bundle takes one, so only a picture of that size can be compared."""
    checkpoint, result = made("glpn")
    file = tmp_path / "picture.png"
    photo(3, 480, 640).save(file)
    found, wanted = load(result.path)(file), theirs("glpn", checkpoint)(str(file))
    np.testing.assert_allclose(found.predicted_depth, wanted["predicted_depth"].numpy(), rtol=1e-3, atol=1e-3)
    assert np.abs(found.depth.astype(int) - np.asarray(wanted["depth"]).astype(int)).max() <= 1
    assert any("640 x 480" in note for note in result.notes)


def test_labels_of_ones_own_are_ranked_as_by_transformers(made, files):
    checkpoint, result = made("clip")
    rank, reference = load(result.path), theirs("clip", checkpoint)
    labels = ["two cats", "a red bus at night", "une tasse de café"]
    for file in files:
        found, wanted = rank(file, labels), reference(str(file), candidate_labels=labels)
        assert [label.label for label in found] == [entry["label"] for entry in wanted]
        assert [label.score for label in found] == pytest.approx([entry["score"] for entry in wanted], abs=1e-5)
    many = [f"label {number}" for number in range(40)]  # more than run together
    assert sum(label.score for label in rank(files[0], many)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(RequestError, match="candidate_labels"):
        rank(files[0], [])


def test_states_are_those_of_the_model(made, files):
    checkpoint, result = made("vit states")
    wanted = theirs("vit states", checkpoint, "image-feature-extraction")(str(files[0]))
    np.testing.assert_allclose(load(result.path)(files[0]), wanted[0], atol=1e-4)


def test_hidden_patches_are_reconstructed(made, files):
    _, result = made("vit hidden")
    reconstruct = load(result.path)
    first = reconstruct(files[0], mask=np.eye(SIDE // 8))
    assert first.shape == (3, SIDE, SIDE)
    assert np.abs(first - reconstruct(files[0], mask=np.ones(16))).max() > 1e-3
    with pytest.raises(RequestError, match="16"):
        reconstruct(files[0], mask=[1, 0])


def test_golden_pictures_lie_in_the_bundle_and_hold(made):
    _, result = made("vit")
    bundle = Bundle.open(result.path)
    cases = bundle.golden()
    assert [case.media for case in cases] == [("image", f"golden/picture-{index}.png") for index in (1, 2, 3)]
    assert {file.role for file in bundle.manifest.files if file.path.startswith("golden/")} == {"golden"}
    assert verify_bundle(bundle).passed


def test_a_golden_picture_that_was_changed_is_noticed(made, tmp_path):
    _, result = made("vit")
    shutil.copytree(result.path, tmp_path / "altered")
    photo(1, 64, 64).save(tmp_path / "altered" / "golden" / "picture-3.png")
    with pytest.raises(DamagedError, match="picture-3"):
        Bundle.open(tmp_path / "altered")


def test_a_checkpoint_without_a_processor_takes_arrays_and_says_so(tmp_path, files):
    checkpoint = picture_checkpoint(tmp_path / "vit", "vit")
    (checkpoint / "preprocessor_config.json").unlink()
    result = export_checkpoint(checkpoint, tmp_path / "arrays", to=("onnx",))
    assert any("finished arrays" in note for note in result.notes)
    with pytest.raises(RequestError, match="finished arrays"):
        load(result.path)
    assert verify_bundle(Bundle.open(result.path)).passed


def test_run_shows_what_is_in_a_picture(made, files, capsys):
    _, vit = made("vit")
    assert main(["run", str(vit.path), str(files[0]), "--top-k", "1"]) == 0
    assert capsys.readouterr().out.split()[0] in LABELS
    _, yolos = made("yolos")
    assert main(["run", str(yolos.path), *map(str, files), "--threshold", "0", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]["onnx"]
    assert set(results[0][0]) == {"score", "label", "box"}
    _, clip = made("clip")
    assert main(["run", str(clip.path), str(files[0]), "--choice", "cat", "--choice", "bus"]) == 0
    assert capsys.readouterr().out.startswith(("cat", "bus"))
    assert main(["run", str(vit.path), "nowhere.jpg"]) == 2


def test_core_ml_takes_pixels_and_normalises_them_itself(tmp_path):
    checkpoint = picture_checkpoint(tmp_path / "vit", "vit")
    result = export_checkpoint(checkpoint, tmp_path / "pixels", to=("coreml",), image_input=True)
    (artifact,) = result.manifest.artifacts
    assert artifact.image_inputs["pixel_values"]["colors"] == "RGB"
    assert artifact.image_inputs["pixel_values"]["steps"] == 1  # resizing is left to the app
    program = Program.load(result.path / artifact.path)
    feature = program.input_features["pixel_values"]
    assert (feature.kind, feature.fixed_shape) == ("image", (1, 3, SIDE, SIDE))
    image = photo(4, SIDE, SIDE)
    logits = program.predict({"pixel_values": image})["logits"]
    best = load(result.path)(image, top_k=1)[0]
    assert best.label == LABELS[int(logits.argmax())]
    assert best.score == pytest.approx(theirs("vit", checkpoint)(image, top_k=1)[0]["score"], abs=1e-5)
    session = Bundle.open(result.path).open_session()
    with pytest.raises(RequestError, match="takes pictures"):
        session.run({"pixel_values": np.full((1, 3, SIDE, SIDE), 0.5011, np.float32)})


def test_the_order_of_channels_is_kept_in_what_core_ml_does_itself():
    pixels = TensorSpec("pixel_values", "float32", (Dim(symbol="batch", min=1), Dim(size=3), Dim(size=8), Dim(size=8)))
    steps = [
        {"step": "center_crop", "height": 8, "width": 8},
        {"step": "rescale", "factor": 0.5},
        {"step": "normalize", "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0]},
        {"step": "flip_channels"},
    ]
    found = image_input({"image": {"steps": steps}}, [pixels])["pixel_values"]
    assert (found["colors"], found["steps"]) == ("BGR", 1)
    assert found["offset"] == pytest.approx([0.6, 0.4, 0.2])
    assert found["scale"] == pytest.approx([0.125, 0.25, 0.5])
    with pytest.raises(RequestError, match="pad"):
        image_input({"image": {"steps": [*steps, {"step": "pad", "height": 9, "width": 9}]}}, [pixels])
    with pytest.raises(RequestError, match="image-input"):
        image_input({}, [pixels])
