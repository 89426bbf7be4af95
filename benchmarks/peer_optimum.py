"""Runs in the environment of optimum (see peers.py): a checkpoint as ONNX, in the forms that optimum offers for a CPU.

    peer_optimum.py CHECKPOINT FOLDER [TASK]

The last line printed is a JSON document: graph name -> file, and versions. Existing graphs are not made again.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import sys
from pathlib import Path


def main() -> None:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    import optimum.onnxruntime.quantization as quantization
    from onnx import TensorProto
    from optimum.onnxruntime import (
        AutoQuantizationConfig,
        ORTModelForFeatureExtraction,
        ORTModelForSequenceClassification,
        ORTOptimizer,
        ORTQuantizer,
    )
    from optimum.onnxruntime.configuration import AutoOptimizationConfig

    classifies = sys.argv[3:] == ["text-classification"]
    kind = ORTModelForSequenceClassification if classifies else ORTModelForFeatureExtraction
    graphs = {"fp32": folder / "plain" / "model.onnx"}
    if not graphs["fp32"].exists():
        kind.from_pretrained(source, export=True).save_pretrained(folder / "plain")
    for level in ("O2", "O3"):  # O3 is O2 with an approximation of GELU; O4 is for GPUs
        graphs[f"fp32 {level}"] = folder / level / "model_optimized.onnx"
        if not graphs[f"fp32 {level}"].exists():
            model = kind.from_pretrained(folder / "plain")
            config = getattr(AutoOptimizationConfig, level)()
            ORTOptimizer.from_pretrained(model).optimize(save_dir=folder / level, optimization_config=config)
    # onnxruntime's quantizer does not infer types behind fused operations; all of them here give fp32.
    quantization.ONNXQuantizer = functools.partial(_typed, quantization.ONNXQuantizer, TensorProto.FLOAT)
    # The avx2 configuration, as it is (unsigned weights, per channel) and per tensor; and the one of signed weights.
    configs = {
        "avx2": AutoQuantizationConfig.avx2(is_static=False),
        "avx2 per tensor": AutoQuantizationConfig.avx2(is_static=False, per_channel=False),
        "avx512": AutoQuantizationConfig.avx512(is_static=False),
    }
    for base, graph in list(graphs.items()):
        for name, config in configs.items():
            if base == "fp32 O3" and name != "avx2":
                continue
            label = f"int8 {name}, {base.removeprefix('fp32').strip() or 'plain'}"
            place = folder / label.replace(",", "").replace(" ", "-")
            graphs[label] = place / f"{graph.stem}_quantized.onnx"
            if not graphs[label].exists():
                quantizer = ORTQuantizer.from_pretrained(graph.parent, file_name=graph.name)
                quantizer.quantize(config, save_dir=place)
    packages = ("optimum", "optimum-onnx", "transformers", "torch", "onnx", "onnxruntime")
    result = {
        "graphs": {name: str(path) for name, path in graphs.items()},
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
    print(json.dumps(result))


def _typed(make, kind, *arguments, extra_options, **others):
    return make(*arguments, extra_options={**extra_options, "DefaultTensorType": kind}, **others)


if __name__ == "__main__":
    main()
