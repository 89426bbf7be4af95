"""What a checkpoint's image processor does, carried as data: the same arrays from files of every kind."""

from pathlib import Path

import numpy as np
import pytest
import transformers
from palmtop.export.inputs.image_steps import prove_processor
from palmtop.export.inputs.pictures import photo
from palmtop.runtime.errors import UnsupportedError
from palmtop.runtime.vision import ImageProcessor
from PIL import Image
from transformers import AutoImageProcessor

# A processor of every kind, with settings that its checkpoints use, small where the size does not matter.
PROCESSORS = {
    "ViT": ("ViTImageProcessor", {}),
    "ViT-MAE": ("ViTImageProcessor", {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    "TrOCR": ("ViTImageProcessor", {"size": {"height": 384, "width": 384}}),
    "DeiT": ("DeiTImageProcessor", {}),
    "Swin": ("ViTImageProcessor", {"resample": 3}),
    "ConvNeXT, cropped": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    "ConvNeXT, 384": ("ConvNextImageProcessor", {}),
    "CLIP": ("CLIPImageProcessor", {}),
    "Chinese CLIP": ("ChineseCLIPImageProcessor", {}),
    "SigLIP": ("SiglipImageProcessor", {}),
    "DETR": ("DetrImageProcessor", {"size": {"shortest_edge": 160, "longest_edge": 266}}),
    "DETR, padded": ("DetrImageProcessor", {"size": {"max_height": 128, "max_width": 128},
                                            "pad_size": {"height": 128, "width": 128}}),
    "YOLOS": ("YolosImageProcessor", {"size": {"shortest_edge": 160, "longest_edge": 266}}),
    "RT-DETR": ("RTDetrImageProcessor", {"size": {"height": 320, "width": 320}}),
    "SegFormer": ("SegformerImageProcessor", {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}),
    "MobileViT": ("MobileViTImageProcessor", {}),
    "MobileNetV1": ("MobileNetV1ImageProcessor", {}),
    "MobileNetV2": ("MobileNetV2ImageProcessor", {}),
    "DPT": ("DPTImageProcessor", {"keep_aspect_ratio": True, "ensure_multiple_of": 32}),
    "DPT, padded": ("DPTImageProcessor", {"do_pad": True, "size_divisor": 32, "do_resize": False}),
    "GLPN": ("GLPNImageProcessor", {}),
    "BEiT": ("BeitImageProcessor", {"do_center_crop": True, "size": {"height": 256, "width": 256}}),
    "LeViT": ("LevitImageProcessor", {}),
    "Donut": ("DonutImageProcessor", {"size": {"height": 256, "width": 192}, "do_align_long_axis": True}),
    "pix2struct": ("Pix2StructImageProcessor", {"max_patches": 64}),
    "PVT": ("PvtImageProcessor", {}),
    "Hiera": ("BitImageProcessor", {}),
    "PoolFormer": ("PoolFormerImageProcessor", {"crop_pct": 0.95}),
    "Perceiver": ("PerceiverImageProcessor", {}),
    "EfficientNet": ("EfficientNetImageProcessor", {"rescale_offset": True}),
    "TextNet": ("TextNetImageProcessor", {"size": {"shortest_edge": 160}}),
    "ViLT": ("ViltImageProcessor", {"size": {"shortest_edge": 96}}),
}  # fmt: skip


def processor_of(folder: Path, kind: str):
    """As a checkpoint brings it: written to preprocessor_config.json and read again."""
    name, settings = PROCESSORS[kind]
    getattr(transformers, f"{name}Pil")(**settings).save_pretrained(folder)
    return AutoImageProcessor.from_pretrained(folder, backend="pil")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Picture files as they come: upright and lying, grey, with a palette, transparent, turned by EXIF, tiny."""
    folder = tmp_path_factory.mktemp("pictures")
    lying, upright, tiny = photo(1, 149, 211), photo(2, 190, 101), photo(3, 40, 36)
    clear = lying.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    turned = Image.Exif()
    turned[0x0112] = 6
    lying.save(folder / "lying.jpg", quality=90)
    upright.save(folder / "upright.png")
    lying.convert("L").save(folder / "grey.png")
    upright.convert("P").save(folder / "palette.gif")
    clear.save(folder / "transparent.png")
    lying.save(folder / "turned.jpg", exif=turned)
    tiny.save(folder / "tiny.webp", lossless=True)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_steps_give_what_the_processor_gives_for_real_files(kind, files, tmp_path):
    processor = processor_of(tmp_path, kind)
    steps = ImageProcessor(prove_processor(processor, "checkpoint").data)
    for file in files:
        wanted = processor(images=str(file), return_tensors="np")
        found = steps(file)
        assert set(found) == set(wanted)
        for name, values in wanted.items():
            if kind == "pix2struct":  # resampled by torch in single precision
                np.testing.assert_allclose(found[name], values, atol=2e-5)
            else:
                np.testing.assert_array_equal(found[name], values, err_msg=f"{kind} {file.name} {name}")
                assert found[name].dtype == values.dtype


def test_pictures_of_several_sizes_are_padded_and_masked_as_the_processor_does_it(files, tmp_path):
    processor = processor_of(tmp_path, "DETR")
    steps = ImageProcessor(prove_processor(processor, "checkpoint").data)
    wanted = processor(images=[str(files[0]), str(files[-1])], return_tensors="np")
    found = steps([files[0], files[-1]])
    np.testing.assert_array_equal(found["pixel_values"], wanted["pixel_values"])
    np.testing.assert_array_equal(found["pixel_mask"], wanted["pixel_mask"])
    assert 0 in found["pixel_mask"]


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP"])
def test_transparent_images_in_memory_are_laid_on_white_where_the_processor_does_it(kind, tmp_path):
    processor = processor_of(tmp_path, kind)
    steps = ImageProcessor(prove_processor(processor, "checkpoint").data)
    clear = photo(5, 80, 90).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    wanted = processor(images=clear, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(steps(clear)["pixel_values"], wanted)


def test_a_processor_that_the_steps_do_not_know_is_refused_with_a_remedy():
    class Sharpened(transformers.ViTImageProcessorPil):
        def rescale(self, image, scale, **kwargs):
            return super().rescale(image, scale) ** 2

    with pytest.raises(UnsupportedError, match="Remedy"):
        prove_processor(Sharpened(), "checkpoint")
