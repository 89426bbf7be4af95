"""Tiny checkpoints that generate, and pipelines over them with no export in between: PyTorch runs them, uncached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from palmtop.export.inputs.image_steps import prove_processor
from palmtop.runtime.assembly import signature
from palmtop.runtime.generation.decoder import Decoder
from palmtop.runtime.generation.session import GenerationSession
from palmtop.runtime.manifest import Artifact, Dim, Manifest, ModelSource, TensorSpec
from palmtop.runtime.pipelines import Pipeline, make_pipeline
from palmtop.runtime.session import Session
from palmtop.runtime.tokenizer import Tokenizer

from .tiny import randomize
from .torch_session import tokenizer_spec
from .vocabularies import KINDS

BATCH, SEQUENCE, ENCODED = Dim(symbol="batch", min=1), Dim(symbol="sequence", min=1), Dim(symbol="encoded", min=1)
_WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def decoder_checkpoint(
    folder: Path, kind: str = "tiktoken", chat_template: str | None = None, config: dict | None = None, **generation
) -> Path:
    """A Llama with a vocabulary of `vocabularies.KINDS`; `generation`: its generation config."""
    tokenizer = _tokenizer(kind, chat_template)
    sizes = {**_WIDTH, "num_key_value_heads": 2, "max_position_embeddings": 128, **(config or {})}
    made = transformers.LlamaConfig(vocab_size=len(tokenizer), **sizes, **_ids(tokenizer))
    return _saved(transformers.LlamaForCausalLM(made), tokenizer, folder, generation)


def encoder_decoder_checkpoint(folder: Path, kind: str = "t5", tokenizer=None, **generation) -> Path:
    """A BART with such a vocabulary, or with a tokenizer of one's own."""
    tokenizer = tokenizer or _tokenizer(kind, None)
    config = transformers.BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=128,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        **_ids(tokenizer),
    )
    return _saved(transformers.BartForConditionalGeneration(config), tokenizer, folder, generation)


def picture_checkpoint(folder: Path, kind: str = "tiktoken", **generation) -> Path:
    """A ViT that looks and a TrOCR decoder that writes."""
    tokenizer = _tokenizer(kind, None)
    looks = transformers.ViTConfig(**_WIDTH, image_size=32, patch_size=8)
    writes = transformers.TrOCRConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        max_position_embeddings=128,
        cross_attention_hidden_size=32,
        decoder_start_token_id=tokenizer.eos_token_id,
        **_ids(tokenizer),
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(looks, writes)
    for name, value in {**_ids(tokenizer), "decoder_start_token_id": tokenizer.eos_token_id}.items():
        setattr(config, name, value)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return _saved(transformers.VisionEncoderDecoderModel(config=config), tokenizer, folder, generation)


def picture_pipeline(folder: Path) -> Pipeline:
    """A palmtop pipeline over such a checkpoint."""
    model = transformers.VisionEncoderDecoderModel.from_pretrained(folder).eval().requires_grad_(False)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    dims = (BATCH, Dim(size=3), Dim(size=32), Dim(size=32))
    artifacts, session = _two(model, [TensorSpec("pixel_values", "float32", dims)], model.config.decoder.vocab_size)
    generation = {**model.generation_config.to_diff_dict(), "context": 128}
    preprocess = {"image": prove_processor(processor, "checkpoint").data}
    return _pipeline(folder, "image-to-text", artifacts, session, generation, preprocess)


def generating_pipeline(folder: Path, *, longest: int | None = None, **generation) -> Pipeline:
    """A palmtop pipeline over such a checkpoint. `longest`: the encoder's axis; `generation`: the manifest's."""
    config = transformers.GenerationConfig.from_pretrained(folder)
    auto = transformers.AutoModelForSeq2SeqLM if _encodes(folder) else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    length = Dim(symbol="sequence", min=1, max=longest)
    reads = [TensorSpec(name, "int64", (BATCH, length)) for name in ("input_ids", "attention_mask")]
    artifacts, session = _two(model, reads, model.config.vocab_size) if _encodes(folder) else _one(model)
    task = "text2text-generation" if _encodes(folder) else "text-generation"
    return _pipeline(folder, task, artifacts, session, {**config.to_diff_dict(), "context": 128, **generation}, {})


def _pipeline(folder: Path, task: str, artifacts, session: Session, generation: dict, preprocess: dict) -> Pipeline:
    spec = tokenizer_spec(folder)
    manifest = Manifest(
        source=ModelSource("tiny", None, "0" * 64, "Tiny"),
        task=task,
        artifacts=artifacts,
        producer={},
        tokenizer=spec,
        preprocess=preprocess,
        generation=generation,
    )
    return make_pipeline(manifest, Tokenizer.open(folder, spec), session)


def _encodes(folder: Path) -> bool:
    return transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder


def _tokenizer(kind: str, chat_template: str | None) -> transformers.PreTrainedTokenizerFast:
    backend = KINDS[kind]()
    tokens = [token.content for _, token in sorted(backend.get_added_tokens_decoder().items())]
    roles = dict(zip(("bos_token", "eos_token", "pad_token"), tokens[-3:], strict=True))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=chat_template,
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
        **roles,
    )


def _ids(tokenizer: transformers.PreTrainedTokenizerFast) -> dict[str, int]:
    return {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}


def _saved(model: torch.nn.Module, tokenizer, folder: Path, generation: dict) -> Path:
    randomize(model, seed=1, gain=2.0)
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _one(model: torch.nn.Module) -> tuple[tuple[Artifact, ...], Session]:
    artifact = _artifact(
        "decoder", [TensorSpec("input_ids", "int64", (BATCH, SEQUENCE))], "logits", model.config.vocab_size
    )
    session = Session(artifact, _Runner(lambda feeds: {"logits": model(feeds["input_ids"]).logits[:, -1:]}))
    return (artifact,), GenerationSession(artifact, Decoder(session, 128))


def _two(model: torch.nn.Module, reads: list[TensorSpec], vocabulary: int) -> tuple[tuple[Artifact, ...], Session]:
    masks = [TensorSpec("attention_mask", "int64", (BATCH, ENCODED))] if len(reads) > 1 else []
    encoder = _artifact("encoder", reads, "encoder_states", 32)
    decoder = _artifact(
        "decoder",
        [
            TensorSpec("decoder_input_ids", "int64", (BATCH, SEQUENCE)),
            TensorSpec("encoder_states", "float32", (BATCH, ENCODED, Dim(size=32))),
            *masks,
        ],
        "logits",
        vocabulary,
    )

    def encode(feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"encoder_states": model.get_encoder()(**feeds).last_hidden_state}

    def decode(feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=feeds.pop("encoder_states"))
        return {"logits": model(encoder_outputs=states, **feeds).logits[:, -1:]}

    stepping = Decoder(Session(decoder, _Runner(decode)), 128)
    return (encoder, decoder), GenerationSession(
        signature([encoder, decoder]), stepping, Session(encoder, _Runner(encode))
    )


def _artifact(method: str, inputs: list[TensorSpec], output: str, width: int) -> Artifact:
    given = TensorSpec(output, "float32", (BATCH, SEQUENCE, Dim(size=width)))
    return Artifact("torch", f"torch/{method}", "fp32", tuple(inputs), (given,), methods={method: method})


class _Runner:
    engine, identity = "PyTorch", None

    def __init__(self, call):
        self.call = call

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            result = self.call({name: torch.from_numpy(array) for name, array in feeds.items()})
        return {name: tensor.numpy() for name, tensor in result.items()}
