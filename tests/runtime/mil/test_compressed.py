"""Packages compressed by coremltools hold, bit for bit, the weights that its own decompression writes."""

import numpy as np
import pytest
from palmtop.runtime.mil import Program

ct = pytest.importorskip("coremltools")
import coremltools.optimize.coreml as cto  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402

INPUTS, OUTPUTS = 64, 96


@pytest.fixture(scope="module")
def model():
    weight = np.random.default_rng(0).standard_normal((OUTPUTS, INPUTS)).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec((INPUTS, INPUTS))], opset_version=ct.target.iOS18)
    def program(x):
        return mb.linear(x=x, weight=weight, name="y")

    return ct.convert(program, minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT16)


def quantized(**how):
    config = cto.OptimizationConfig(cto.OpLinearQuantizerConfig(weight_threshold=0, **how))
    return lambda model, **more: cto.linear_quantize_weights(model, config, **more)


def palettized(**how):
    config = cto.OptimizationConfig(cto.OpPalettizerConfig(weight_threshold=0, **how))
    return lambda model, **more: cto.palettize_weights(model, config, **more)


def pruned(model):
    # fp16 percentiles of large arrays are NaN in numpy 2: a magnitude threshold needs none.
    return cto.prune_weights(
        model, cto.OptimizationConfig(cto.OpThresholdPrunerConfig(threshold=0.7, minimum_sparsity_percentile=0.0))
    )


SCHEMES = {
    "int8 per channel": quantized(mode="linear_symmetric", dtype="int8", granularity="per_channel"),
    "uint8 with offset": quantized(mode="linear", dtype="uint8", granularity="per_tensor"),
    "int4 per block": quantized(mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=32),
    "uint4 per block with offset": quantized(mode="linear", dtype="uint4", granularity="per_block", block_size=16),
    "palette of 1 bit": palettized(mode="uniform", nbits=1),
    "palette of 3 bits": palettized(mode="uniform", nbits=3),
    "palette of 6 bits": palettized(mode="uniform", nbits=6),
    "palettes of 4 bits per group of channels": palettized(
        mode="uniform", nbits=4, granularity="per_grouped_channel", group_size=8
    ),
    "palette of vectors": palettized(mode="kmeans", nbits=4, cluster_dim=4),
    "palettes of vectors per group of channels": palettized(
        mode="kmeans", nbits=2, cluster_dim=2, granularity="per_grouped_channel", group_size=16
    ),
    "palette and a scale per channel": palettized(mode="kmeans", nbits=4, enable_per_channel_scale=True),
    "sparse": pruned,
    "sparse and quantized": lambda model: quantized(mode="linear_symmetric", dtype="int8")(
        pruned(model), joint_compression=True
    ),
    "sparse and palettized": lambda model: palettized(mode="uniform", nbits=4)(pruned(model), joint_compression=True),
}


def weights(model, path):
    """What the program multiplies with: its result for the identity matrix."""
    model.save(str(path))
    program = Program.load(path)
    return next(iter(program.predict({"x": np.eye(INPUTS)}).values()))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_weights_are_those_of_coremltools(model, scheme, tmp_path):
    compressed = SCHEMES[scheme](model)
    ours = weights(compressed, tmp_path / "compressed.mlpackage")
    theirs = weights(cto.decompress_weights(compressed), tmp_path / "decompressed.mlpackage")
    np.testing.assert_array_equal(ours, theirs)
    assert (
        tmp_path / "compressed.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    ).stat().st_size < 2 * INPUTS * OUTPUTS
    assert np.unique(ours).size > 1
