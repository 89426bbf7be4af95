"""Llamas of several sizes with random weights, made on disk shard by shard: never more than one shard in memory.

python benchmarks/llamas.py FOLDER SIZE [DTYPE]
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHARD_BYTES = 800_000_000
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    shared: int  # heads of keys and values
    tied: bool = False  # whether the head is the table of tokens

    def config(self) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.shared,
            max_position_embeddings=2048,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            tie_word_embeddings=self.tied,
            architectures=["LlamaForCausalLM"],
        )


# By the number of parameters: MiniLM, BERT base, BERT large (or SmolLM), Llama 3.2.
SHAPES = {
    "22M": Shape(16_000, 384, 1024, 6, 6, 2),
    "110M": Shape(22_000, 768, 2048, 12, 12, 4),
    "350M": Shape(32_000, 1024, 2816, 25, 16, 4),
    "1B": Shape(32_000, 2048, 5632, 20, 32, 4),
}
# SmolLM-135M's.
SMALL = Shape(49_152, 576, 1536, 30, 9, 3, tied=True)


def make(folder: Path, shape: Shape, dtype: str = "float32") -> int:
    """Write a checkpoint and give its number of parameters. A folder that has one already is left as it is."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    config = shape.config()
    with torch.device("meta"):
        sizes = {name: tuple(value.shape) for name, value in LlamaForCausalLM(config).named_parameters()}
    count = sum(torch.Size(size).numel() for size in sizes.values())
    index = folder / "model.safetensors.index.json"
    said = {"shape": dataclasses.asdict(shape), "dtype": dtype}
    if index.exists() and json.loads(index.read_text())["metadata"].get("made") == json.dumps(said):
        return count
    folder.mkdir(parents=True, exist_ok=True)
    config.dtype = dtype
    config.save_pretrained(folder)
    _tokenizer(shape.vocabulary).save_pretrained(folder)
    shards = _shards(sizes, _BYTES[dtype])
    names: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in shard:
            value = torch.empty(sizes[name])
            if value.ndim == 1:
                value.uniform_(0.5, 1.5, generator=generator)
            else:
                value.normal_(0.0, _spread(name, sizes[name], shape.tied), generator=generator)
            tensors[name] = value.to(getattr(torch, dtype))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        names |= dict.fromkeys(shard, file)
    metadata = {"total_size": count * _BYTES[dtype], "made": json.dumps(said)}
    index.write_text(json.dumps({"metadata": metadata, "weight_map": names}, indent=1))
    return count


def _spread(name: str, size: tuple[int, ...], tied: bool) -> float:
    """Sums of as many terms as there are columns keep their size. A table that is the head as well has small rows: else
    each token's own row, carried through the layers, makes it the likeliest to follow itself.
    """
    return 1.0 if "embed" in name and not tied else size[1] ** -0.5


def _shards(sizes: dict[str, tuple[int, ...]], width: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        nbytes = width
        for axis in size:
            nbytes *= axis
        if shards[-1] and held + nbytes > _SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += nbytes
    return shards


def _tokenizer(most: int) -> Any:
    """Pairs of bytes learned from Python's documentation; smaller than the model's vocabulary, which may be larger."""
    import sentences
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(most, 4000),
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sentences.split()[1], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=2048,
        model_input_names=["input_ids", "attention_mask"],
    )


if __name__ == "__main__":
    made = make(Path(sys.argv[1]), SHAPES[sys.argv[2]], *sys.argv[3:4])
    print(f"{made / 1e6:.0f} M parameters")
