"""Models that generate, fed in steps through a cache, say what they say when they read everything at once."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from palmtop.export import hf
from palmtop.export.capture import Captured, Method, capture
from palmtop.export.generation.decoder import Decoder, NoCache
from palmtop.export.generation.states import can_keep, into_states
from palmtop.export.generation.uncached import Uncached
from palmtop.export.methods import capture_methods
from palmtop.export.precision import half_precision
from palmtop.export.reference import Reference
from palmtop.export.subject import Subject
from palmtop.export.targets import Options, get_target
from palmtop.runtime.backends.executorch_file import constants
from palmtop.runtime.backends.onnx_file import operations
from palmtop.runtime.errors import UnsupportedError
from palmtop.runtime.generation.decoder import Decoder as Runner
from palmtop.runtime.manifest import ModelSource
from palmtop.runtime.session import Session
from transformers import AutoConfig, AutoModelForCausalLM

CONTEXT = 24
STEPS = (7, 1, 1, 1, 4)
NOISE = {"fp32": 1e-5, "fp16": 3e-2}

USUAL = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
}
OLD = {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": 2}
KINDS: dict[str, dict] = {
    "llama": {},
    "gpt2": OLD,
    "gpt_bigcode": OLD,
    "gptj": {**OLD, "rotary_dim": 4},
    "bloom": {"vocab_size": 61, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    "mpt": {"vocab_size": 61, "d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "opt": {**USUAL, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "falcon": {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma2": {"sliding_window": 3, "query_pre_attn_scalar": 4},
    "gemma3_text": {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neo": {
        "vocab_size": 61,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 3,
        "max_position_embeddings": 64,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 1},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 6,
        "moe_intermediate_size": 8,
        "first_k_dense_replace": 1,
    },
}


@cache
def model_of(kind: str) -> torch.nn.Module:
    """A tiny model whose logits differ from token to token."""
    torch.manual_seed(3)
    own = KINDS[kind]
    config = AutoConfig.for_model(kind, **(own if "vocab_size" in own else {**USUAL, **own}))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")
    return model.requires_grad_(False).eval()


@cache
def tokens() -> np.ndarray:
    return torch.randint(4, 61, (1, sum(STEPS)), generator=torch.Generator().manual_seed(5)).numpy()


def at_once(kind: str, ids: np.ndarray) -> np.ndarray:
    return model_of(kind)(input_ids=torch.from_numpy(ids), use_cache=False).logits[0].numpy()


@cache
def captured_of(kind: str, way: str) -> Captured:
    model = model_of(kind)
    part = Decoder(model).growing(CONTEXT) if way == "growing" else Decoder(model).fixed(CONTEXT)
    captured = capture(Method(model, part.call), part.example, part.inputs, part.outputs, trace=hf.trace)
    return dataclasses.replace(captured, method=part.method, caches=part.caches, told=part.told)


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """Artifacts by target, kind and precision, each made once and opened."""

    @cache
    def made(target_name: str, kind: str, precision: str) -> Runner:
        target = get_target(target_name)
        captured = captured_of(kind, target.cache)
        artifact = target.plan(captured, Options(precision=precision))
        assert target.unsupported(captured, artifact) == []
        root: Path = tmp_path_factory.mktemp(f"{target_name}-{kind}")
        target.lower(captured, artifact, "id", root / artifact.path)
        return Runner(Session.open(root, artifact, "id", threads=1))

    return lambda target_name, kind, precision="fp32": made(target_name, kind, precision)


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def worst(decoder: Runner, kind: str, ids: np.ndarray, steps: tuple[int, ...] = STEPS) -> float:
    """The largest distance of any step's logits from those of everything at once."""
    wanted, conversation, found = at_once(kind, ids), decoder.start(), [0.0]
    for length in steps:
        logits = conversation.feed(ids[:, conversation.length : conversation.length + length])
        found.append(distance(logits[0], wanted[conversation.length - 1]))
    return max(found)


@pytest.mark.parametrize("way", ["growing", "fixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_goes_through_one_route(kind, way):
    model, ids = model_of(kind), torch.from_numpy(tokens())
    part = Decoder(model).growing(CONTEXT) if way == "growing" else Decoder(model).fixed(CONTEXT)
    wanted, start, found = at_once(kind, tokens()), 0, []
    kept = {spec.name: spec.dims for spec in part.inputs if spec.name.startswith("past_")}
    state = {name: torch.zeros([dim.size or dim.min or 0 for dim in dims]) for name, dims in kept.items()}
    for length in STEPS:
        given = {"input_ids": ids[:, start : start + length], "start": torch.tensor([start]), **state}
        logits, *after = part.call(model, given)
        state = dict(zip(state, after, strict=True))
        start += length
        found.append(distance(logits[0, -1].numpy(), wanted[start - 1]))
    assert max(found) < NOISE["fp32"]


def test_a_window_wider_than_what_is_tried_is_counted_from_the_last_key():
    torch.manual_seed(3)
    config = AutoConfig.for_model("gpt_neo", **{**KINDS["gpt_neo"], "window_size": 12})
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    part, ids = Decoder(model).fixed(CONTEXT), torch.from_numpy(tokens())
    state = {name: value * 0 for name, value in part.example.items() if name.startswith("past_")}
    for place in range(ids.shape[1]):
        given = {"input_ids": ids[:, place : place + 1], "start": torch.tensor([place]), **state}
        logits, *after = part.call(model, given)
        state = dict(zip(state, after, strict=True))
    wanted = model(input_ids=ids, use_cache=False).logits[0, -1]
    assert distance(logits[0, -1].numpy(), wanted.numpy()) < NOISE["fp32"]


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("onnx", "llama"),
        ("onnx", "gemma3_text"),
        ("onnx", "deepseek_v3"),
        ("coreml", "bloom"),
        ("coreml", "gpt_neo"),
        ("coreml", "qwen3_moe"),
        ("executorch", "llama"),
    ],
)
def test_an_artifact_fed_in_steps_is_the_model(runner, target, kind):
    decoder = runner(target, kind)
    assert worst(decoder, kind, tokens()) < NOISE["fp32"]
    assert worst(decoder, kind, tokens(), steps=(1, 13)) < NOISE["fp32"]


def test_several_rows_share_a_growing_cache(runner):
    session = runner("onnx", "llama").session
    ids = np.concatenate([tokens(), tokens()[:, ::-1]])
    feeds = {spec.name: np.zeros((2, 2, 0, 4), np.float32) for spec in session.artifact.inputs[1:]}
    logits = session.run({"input_ids": ids, **feeds})["logits"]
    for row in range(2):
        assert distance(logits[row, 0], at_once("llama", ids[row : row + 1])[-1]) < NOISE["fp32"]


def test_onnx_attends_to_grouped_heads_as_they_are(runner):
    counted = operations(runner("onnx", "llama").session.path)
    assert counted["Attention"] == 2
    assert "Softmax" not in counted


def test_core_ml_keeps_the_cache_as_state_in_fp16(runner):
    decoder = runner("coreml", "llama", "fp16")
    artifact = decoder.session.artifact
    assert [spec.name for spec in artifact.inputs] == ["input_ids", "start"]
    assert [spec.name for spec in artifact.states] == ["past_key_0", "past_value_0", "past_key_1", "past_value_1"]
    assert artifact.minimum_os["ios"] == "18.0"
    assert worst(decoder, "llama", tokens()) < NOISE["fp16"]


@pytest.mark.parametrize(("target", "precision"), [("coreml", "fp16"), ("executorch", "fp32")])
def test_conversations_know_nothing_of_each_other(runner, target, precision):
    decoder = runner(target, "llama", precision)
    first, other = tokens(), tokens()[:, ::-1].copy()
    alone = decoder.start().feed(first)
    one, two = decoder.start(), decoder.start()
    for place in range(0, first.shape[1], 7):
        said = one.feed(first[:, place : place + 7])
        two.feed(other[:, place : place + 7])
    assert distance(said, alone) < NOISE[precision]
    np.testing.assert_array_equal(decoder.start().feed(first), alone)


def test_executorch_tells_its_runners_what_they_ask(runner):
    session = runner("executorch", "llama").session
    told = constants(session.path)
    assert told["get_max_seq_len"] == told["get_max_context_len"] == CONTEXT
    assert told["get_vocab_size"] == 61
    assert told["use_kv_cache"]
    assert told["enable_dynamic_shape"]
    assert not told["use_sdpa_with_kv_cache"]
    assert told["get_bos_id"] == 1
    assert [spec.dtype for spec in session.artifact.states] == ["float32"] * 4


def test_states_begin_as_zeros_and_leave_the_captured_program_alone():
    captured = captured_of("llama", "fixed")
    assert can_keep(captured)
    before = [spec.name for spec in captured.inputs]
    program = into_states(captured).program
    written = program.graph_signature.buffers_to_mutate.values()
    assert sorted(written) == sorted(name for name, _ in captured.caches)
    assert not any(program.state_dict[name].any() for name in written)
    assert program.graph_signature.user_inputs == ("input_ids", "start")
    assert list(captured.program.graph_signature.user_inputs) == before


def test_a_growing_cache_is_no_state():
    assert not can_keep(captured_of("llama", "growing"))


def test_a_model_without_keys_and_values_has_no_cached_route():
    with pytest.raises(NoCache, match="keeps no keys and values"):
        Decoder(xlnet())


def test_a_model_without_keys_and_values_reads_the_whole_sequence_for_each_token(tmp_path):
    model, ids = xlnet(), tokens()
    uncached = Uncached(model)
    part = uncached.part(CONTEXT)
    captured = capture(Method(model, part.call), part.example, part.inputs, part.outputs, trace=hf.trace)
    target = get_target("onnx")
    artifact = target.plan(dataclasses.replace(captured, method=part.method), Options())
    target.lower(captured, artifact, "id", tmp_path / artifact.path)

    conversation = Runner(Session.open(tmp_path, artifact, "id", threads=1)).start()
    found = [conversation.feed(ids[:, :5])[0]]
    found += [conversation.feed(ids[:, start : start + 1])[0] for start in range(5, ids.shape[1])]

    # The token to predict is behind the others, where nothing attends to it; from Transformers' own documentation.
    ahead = torch.from_numpy(np.concatenate([ids, [[0]]], axis=1))
    hidden = torch.zeros(1, ahead.shape[1], ahead.shape[1])
    hidden[:, :, -1] = 1
    asked = torch.zeros(1, 1, ahead.shape[1])
    asked[0, 0, -1] = 1
    wanted = model(input_ids=ahead, perm_mask=hidden, target_mapping=asked).logits[0, 0]
    assert distance(found[-1], wanted.numpy()) < NOISE["fp32"]
    whole = uncached.whole(model, {"input_ids": torch.from_numpy(ids)})[0][0].numpy()
    assert distance(np.stack(found[-len(whole) :]), whole) < NOISE["fp32"]


@cache
def xlnet() -> torch.nn.Module:
    torch.manual_seed(3)
    config = AutoConfig.for_model("xlnet", vocab_size=61, d_model=16, n_layer=2, n_head=2, d_inner=16)
    return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


def test_in_fp16_the_cache_is_of_halves_and_angles_are_exact():
    captured = into_states(captured_of("llama", "fixed"))
    program = captured.program
    program._state_dict = dict(program.state_dict)
    half_precision(program, to_half=lambda value: value.half(), to_float=lambda value: value.float())
    assert {program.state_dict[name].dtype for name in program.graph_signature.buffers_to_mutate.values()} == {
        torch.float16
    }
    cosine = next(node for node in program.graph.nodes if node.target is torch.ops.aten.cos.default)
    value = cosine
    while value.meta["val"].dtype != torch.int64:  # back to the positions
        assert value.meta["val"].dtype == torch.float32
        value = value.all_input_nodes[0]


def test_a_program_for_one_length_alone_generates_nothing():
    config = AutoConfig.for_model(
        "mamba", vocab_size=61, hidden_size=16, state_size=4, num_hidden_layers=1, time_step_rank=4
    )
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    part = Uncached(model).part(CONTEXT)
    subject = Subject(
        info=ModelSource("mamba", None, "", "MambaForCausalLM"),
        task="text-generation",
        reference=Reference(model, part.call, ()),
        inputs=part.inputs,
        example=part.example,
        trace=hf.trace,
        cases=list,
        golden=list,
        calibration=lambda _: [],
        parts=lambda _: (part,),
    )
    with pytest.raises(UnsupportedError, match="any size of the axis sequence"):
        capture_methods(subject)
