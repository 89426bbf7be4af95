"""Core ML through `transformers.exporters`: what runs gives what the eager model gives, in the same containers."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from palmtop.export.transformers_backend import CoreMLConfig, CoreMLExporter, CoreMLProgram
from palmtop.runtime.errors import DamagedError, RequestError, UnsupportedError
from palmtop.runtime.mil import Program
from transformers.exporters import AutoExportConfig, AutoHfExporter, ExportedModel
from transformers.utils import ModelOutput

from ..support.tiny import randomize, tiny_config, tiny_model

ROOT = Path(__file__).parents[2]


def texts(rows: int = 2, length: int = 12) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 500, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1:, (2 * length) // 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def lively(model: torch.nn.Module) -> torch.nn.Module:
    randomize(model)
    return model.eval().requires_grad_(False)


def bert() -> torch.nn.Module:
    return tiny_model(tiny_config("bert", 500, 64, pad_token_id=0), "text-classification")


def vit() -> torch.nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    return lively(transformers.ViTForImageClassification(config))


def llama() -> torch.nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=500,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return lively(transformers.LlamaForCausalLM(config))


def distance(got: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference, relative to the reference's root mean square."""
    assert got.shape == reference.shape
    assert got.dtype == reference.dtype
    return float((got - reference).abs().max() / reference.square().mean().sqrt())


def assert_same(got: ModelOutput, reference: ModelOutput, bound: float = 2e-5) -> None:
    assert type(got) is type(reference)
    leaves = [torch.utils._pytree.tree_leaves(output) for output in (got, reference)]
    assert len(leaves[0]) == len(leaves[1]) > 0
    for one, other in zip(*leaves, strict=True):
        assert distance(one, other) < bound


@pytest.fixture(scope="module")
def exported() -> tuple[torch.nn.Module, ExportedModel]:
    """A tiny BERT with every axis free."""
    model = bert()
    return model, CoreMLExporter().export(model, texts(), CoreMLConfig(dynamic=True))


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 12), (1, 7), (3, 40), (1, 1)])
def test_bert_at_any_batch_and_length(exported, shape):
    model, export = exported
    assert_same(export(**texts(*shape)), model(**texts(*shape)))


def test_vit():
    model, image = vit(), {"pixel_values": torch.rand(1, 3, 32, 32)}
    export = CoreMLExporter().export(model, image, CoreMLConfig())
    other = {"pixel_values": torch.rand(1, 3, 32, 32)}
    assert_same(export(**other), model(**other))


def test_a_causal_model_without_cache():
    model = llama()
    export = CoreMLExporter().export(model, {**texts(), "use_cache": False}, CoreMLConfig(dynamic=True))
    for shape in ((2, 12), (1, 30)):
        assert_same(export(**texts(*shape)), model(**texts(*shape), use_cache=False))


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
FAMILIES = {
    "a causal model of another kind": lambda: (
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=500, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        ),
        {**texts(), "use_cache": False},
    ),
    "text and images": lambda: (
        transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={"vocab_size": 500, "max_position_embeddings": 64, "eos_token_id": 499, **SMALL},
                vision_config={"image_size": 32, "patch_size": 8, **SMALL},
                projection_dim=16,
            )
        ),
        {**texts(), "pixel_values": torch.rand(1, 3, 32, 32)},
    ),
    "sound": lambda: (
        transformers.Wav2Vec2ForCTC(
            transformers.Wav2Vec2Config(
                vocab_size=32,
                conv_dim=(8, 8),
                conv_stride=(5, 2),
                conv_kernel=(10, 3),
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
                **SMALL,
            )
        ),
        {"input_values": torch.rand(1, 400)},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(family):
    torch.manual_seed(0)
    model, inputs = FAMILIES[family]()
    model = lively(model)
    export = CoreMLExporter().export(model, dict(inputs), CoreMLConfig())
    assert_same(export(**inputs), model(**inputs))


def test_hidden_states_come_in_the_containers_of_the_model():
    model = bert()
    export = CoreMLExporter().export(model, {**texts(), "output_hidden_states": True}, CoreMLConfig())
    assert_same(export(**texts()), model(**texts(), output_hidden_states=True))
    names = [spec.name for spec in export.program.artifact.outputs]
    assert names == ["logits", *(f"hidden_states_{index}" for index in range(3))]


def test_generation_with_a_cache_writes_what_the_model_writes():
    """Prefill and decode as programs, the cache between them: the tokens of `model.generate`."""
    model, prompt = llama(), {key: value[:1, :6] for key, value in texts().items()}
    export = CoreMLExporter().export_for_generation(model, dict(prompt), CoreMLConfig(dynamic=True))
    assert set(export.components) == {"prefill", "decode"}
    expected = model.generate(**prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    ids, mask, cache = prompt["input_ids"], prompt["attention_mask"], transformers.DynamicCache(config=model.config)
    written = ids
    for step in range(8):
        positions = torch.arange(mask.shape[1] - ids.shape[1], mask.shape[1])[None]
        run = export.runners["prefill" if step == 0 else "decode"]
        result = run(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=copy.deepcopy(cache))
        ids, cache = result.logits[:, -1:].argmax(-1), result.past_key_values
        written = torch.cat([written, ids], dim=1)
        mask = torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], dim=1)
    assert written.tolist() == expected.tolist()


# --- options --------------------------------------------------------------------------------------------------------


def test_half_precision_keeps_named_modules_and_the_boundary_in_fp32():
    model = bert()

    def types(keep: tuple[str, ...]) -> tuple[ExportedModel, int]:
        export = CoreMLExporter().export(model, texts(), CoreMLConfig(precision="fp16", keep_fp32=keep))
        program = Program.load(export.program.path)
        return export, sum("fp16" in str(output) for op in program.operations for output in op.outputs)

    export, all_half = types(())
    assert {spec.dtype for spec in export.program.artifact.outputs} == {"float32"}
    assert 1e-6 < distance(export(**texts()).logits, model(**texts()).logits) < 2e-2
    _, some_half = types(("bert.encoder",))
    assert 0 < some_half < all_half


@pytest.mark.parametrize("ios", ["15", "16", "17", "18"])
def test_attention_is_one_operation_from_ios_18_on(ios):
    model = bert()
    export = CoreMLExporter().export(model, texts(), CoreMLConfig(minimum_ios=ios))
    program = Program.load(export.program.path)
    fused = [op for op in program.operations if op.type == "scaled_dot_product_attention"]
    assert bool(fused) == (ios == "18")
    assert_same(export(**texts()), model(**texts()))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"precision": "int8"}, "Known: fp32, fp16"),
        ({"minimum_ios": "14"}, "Known: 15, 16, 17, 18"),
        ({"keep_fp32": ["bert"]}, "precision is fp32"),
        ({"precision": "fp16", "keep_fp32": ["bert.encodr"]}, "Close to it: .*bert.encoder"),
        ({"longest": 0}, "at least 1"),
    ],
)
def test_options_that_core_ml_has_nothing_for(config, says):
    with pytest.raises(RequestError, match=says):
        CoreMLExporter().export(bert(), texts(), CoreMLConfig(**config))


def test_quantizers_of_other_formats_are_refused():
    class Quantizer:
        pass

    with pytest.raises(RequestError, match="Quantizer does not quantize Core ML"):
        CoreMLExporter().export(bert(), texts(), CoreMLConfig(quantizer=Quantizer()))


# --- the API --------------------------------------------------------------------------------------------------------


def test_the_auto_classes_know_the_format():
    config = AutoExportConfig.from_dict({"export_format": "coreml", "precision": "fp16"})
    assert config == CoreMLConfig(precision="fp16")
    assert isinstance(AutoHfExporter.from_config(config), CoreMLExporter)


def test_what_was_saved_loads_and_runs(exported, tmp_path):
    model, export = exported
    for _ in range(2):  # the second time over the first
        export.save_pretrained(tmp_path / "bert")
    loaded = ExportedModel.from_pretrained(tmp_path / "bert")
    assert loaded.export_format == "coreml"
    assert_same(loaded(**texts(1, 9)), model(**texts(1, 9)))
    loaded.save_pretrained(tmp_path / "bert")  # over the files that it runs from
    assert_same(loaded(**texts(2, 5)), model(**texts(2, 5)))
    assert_same(ExportedModel.from_pretrained(tmp_path / "bert")(**texts(1, 9)), model(**texts(1, 9)))


def test_a_program_is_a_package_that_other_tools_read(exported, tmp_path):
    _, export = exported
    path = export.program.save(tmp_path / "bert.mlpackage")
    assert set(Program.load(path).inputs) == {"input_ids", "attention_mask"}
    assert CoreMLProgram.load(path).artifact.inputs == export.program.artifact.inputs
    assert export.program.save(path) == path  # in place of a package
    (tmp_path / "notes.mlpackage").mkdir()
    with pytest.raises(RequestError, match="no Core ML package"):
        export.program.save(tmp_path / "notes.mlpackage")
    with pytest.raises(RequestError, match=r"something\.mlpackage"):
        export.program.save(tmp_path / "bert")


def test_the_engine_and_the_device(exported):
    _, export = exported
    assert "Core ML" in export.runners["model"].engine or "interpreter" in export.runners["model"].engine
    assert export.device == torch.device("cpu")
    assert export.dtype == torch.float32
    with pytest.raises(RequestError, match="not 'cuda'"):
        export.to("cuda")
    export.to("cpu")


# --- models with surprises ------------------------------------------------------------------------------------------


class Odd(transformers.PreTrainedModel):
    """A function as a Transformers model."""

    config_class = transformers.PretrainedConfig

    def __init__(self, function):
        super().__init__(transformers.PretrainedConfig())
        self.linear = torch.nn.Linear(4, 4)
        self.function = function

    def forward(self, x, y=None):
        return self.function(self, x, y)


@pytest.mark.parametrize(
    "function",
    [
        lambda model, x, y: {"z": model.linear(x)},  # y is never read
        lambda model, x, y: {"x": model.linear(x), "y": y},  # outputs called like inputs; one is an input
        lambda model, x, y: {"a": model.linear(x), "b": (model.linear(x) > 0), "n": 3, "i": x.argmax(-1)},
        lambda model, x, y: (model.linear(x), [model.linear(y), x + 1]),
        lambda model, x, y: model.linear(x),
    ],
    ids=["unread input", "names shared", "dtypes and constants", "nested", "bare tensor"],
)
def test_what_models_may_take_and_return(function):
    model = Odd(function).eval()
    inputs = {"x": torch.rand(2, 4) - 0.5, "y": torch.rand(2, 4)}
    got = CoreMLExporter().export(model, inputs, CoreMLConfig())(**inputs)
    reference = model(**inputs)
    spec = torch.utils._pytree.tree_structure
    assert spec(got) == spec(reference)
    for one, other in zip(*map(torch.utils._pytree.tree_leaves, (got, reference)), strict=True):
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.allclose(one, other, atol=1e-6) if other.is_floating_point() else torch.equal(one, other)
        else:
            assert one == other


def test_operations_that_core_ml_lacks_are_named():
    model = Odd(lambda model, x, y: torch.linalg.svd(model.linear(x)).S).eval()
    with pytest.raises(UnsupportedError, match="svd"):
        CoreMLExporter().export(model, {"x": torch.rand(4, 4)}, CoreMLConfig())


# --- wrong calls ----------------------------------------------------------------------------------------------------


def test_wrong_inputs_are_refused(exported):
    _, export = exported
    with pytest.raises(RequestError, match="Missing input attention_mask"):
        export(input_ids=texts()["input_ids"])
    with pytest.raises(RequestError, match="has shape"):
        export(**texts(1, 80))  # more positions than the model has
    huge = texts()
    huge["input_ids"][0, 0] = 2**40
    with pytest.raises(RequestError, match="beyond int32"):
        export(**huge)


def test_packages_from_elsewhere_and_none_at_all(exported, tmp_path):
    _, export = exported
    with pytest.raises(DamagedError, match="no such folder"):
        CoreMLProgram.load(tmp_path / "missing.mlpackage")
    path = export.program.save(tmp_path / "bert.mlpackage")
    (path / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b"")
    with pytest.raises(DamagedError):
        CoreMLProgram.load(path)


def test_the_snippet_of_the_page_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    values = {"model": bert(), "inputs": texts()}
    exec(snippet, values)
    assert (tmp_path / "model.mlpackage" / "Manifest.json").is_file()
    assert distance(values["outputs"].logits, values["model"](**texts()).logits) < 2e-2
