"""Tokens per second of a Llama of 135 M parameters (SmolLM's shape, random weights), beside `model.generate`.

    python benchmarks/generation.py [--quick] [--json]      most of its time is for the exports

Greedy text of 64 tokens after prompts of 16 and 128, one thread: palmtop's own pipeline on ONNX Runtime and ExecuTorch,
in fp32, int8 and int4, and `model.generate` in PyTorch with its caches, in turns within one process. Beside the speed
stands how far each artifact is from the eager model, token by token. Bounds are printed with whether they are met.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures as shared

shared.one_thread()  # before numpy is imported

import llamas  # noqa: E402
import numpy as np  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
import sentences  # noqa: E402
from figures import Bound, Figures  # noqa: E402
from palmtop.runtime import load  # noqa: E402
from palmtop.runtime.bundle import Bundle  # noqa: E402
from palmtop.runtime.generation.generate import tokens  # noqa: E402

TARGETS = ("onnx", "executorch")
_LENGTH = 256  # tokens that the bundles take
_AT_ONCE = 2  # exports, which nothing here is said about, beside each other
# How many texts plans are made from: no speed depends on it, and the default takes minutes more.
_CALIBRATED = 32
# No plan of a model that never learned anything agrees much: the gate is left open, and what is lost is measured here.
KINDS = {
    "fp32": (),
    "int8": ("--quantize", "int8", "--min-agreement", "0.5"),
    "int4": ("--quantize", "int4", "--min-agreement", "0.5"),
}
DYNAMIC, STATIC = "generate, dynamic cache", "generate, static cache"
COMPILED = "generate, static cache, torch.compile"
_AS_FAST = 1.5


@dataclass(frozen=True)
class Settings:
    """compile_seconds: how long torch.compile may take before that contender is left out; 0: it is not tried."""

    shape: llamas.Shape = llamas.SMALL
    prompts: tuple[int, ...] = (16, 128)
    new: int = 64
    rounds: int = 3
    compile_seconds: int = 60


_TIED = dataclasses.replace(llamas.SHAPES["22M"], tied=True)
QUICK = Settings(shape=_TIED, prompts=(16,), new=8, rounds=2, compile_seconds=0)


@dataclass(frozen=True)
class Said:
    """Tokens, and the seconds to the first and from there to the last."""

    ids: list[int]
    first: float
    rest: float

    @property
    def seconds(self) -> float:
        return self.first + self.rest


@dataclass(frozen=True)
class Agreement:
    """Logits of every step, given the reference's tokens: the largest error relative to the scale, the mean cosine, and
    the share of equal decisions.
    """

    error: float
    cosine: float
    same: float


Contender = Callable[[list[int], int], Said]


# --- contenders -----------------------------------------------------------------------------------------------------


class Clock:
    """A streamer of Transformers that notes when tokens come; the first that it is given is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def eager(model: Any, **options: Any) -> Contender:
    """`model.generate`, greedily."""
    import torch

    def say(prompt: list[int], new: int) -> Said:
        clock, ids = Clock(), torch.tensor([prompt])
        began = time.perf_counter()
        with torch.no_grad():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                streamer=clock,
                **options,
            )
        return Said(found[0, len(prompt) :].tolist(), clock.times[1] - began, clock.times[-1] - clock.times[1])

    return say


def compiled(model: Any, prompt: list[int], new: int, seconds: int) -> Contender | None:
    """`model.generate` with its decoding step compiled; None when that takes longer, or fails."""
    from transformers import CompileConfig

    how = CompileConfig(fullgraph=True, mode="default")
    how._compile_all_devices = True  # transformers does it on its own where it expects a gain: not on CPUs
    say = eager(model, cache_implementation="static", compile_config=how)

    def late(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        say(prompt, new)
    except Exception as error:  # the compiler wraps what interrupts it in whatever it likes
        shared.say(f"torch.compile: {type(error).__name__}")
        return None
    finally:
        signal.alarm(0)
    return say


def palmtop(pipeline: Any) -> Contender:
    """A bundle's pipeline, from the prompt's ids on."""
    generator = pipeline.generator

    def say(prompt: list[int], new: int) -> Said:
        settings = generator.settings(max_new_tokens=new, do_sample=False, num_beams=1, eos_token_id=[])
        ids, times, began = [], [], time.perf_counter()
        for token in tokens(generator.job(prompt, settings)):
            ids.append(token)
            times.append(time.perf_counter())
        return Said(ids, times[0] - began, times[-1] - times[0])

    return say


# --- measuring ------------------------------------------------------------------------------------------------------


def agreement(pipeline: Any, prompt: list[int], said: list[int], logits: np.ndarray) -> Agreement:
    """An artifact's steps beside `logits` (tokens, vocabulary) of the eager model on the whole sequence at once."""
    conversation = pipeline.generator.session.start()
    found = [conversation.feed([prompt])[0]]
    found += [conversation.feed([[token]])[0] for token in said[:-1]]
    ours, theirs = np.stack(found).astype(np.float64), logits.astype(np.float64)
    scale = np.sqrt((theirs**2).mean())
    cosines = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    same = (ours.argmax(-1) == theirs.argmax(-1)).mean()
    return Agreement(float(np.abs(ours - theirs).max() / scale), float(cosines.mean()), float(same))


def at_once(model: Any, prompt: list[int], said: list[int]) -> np.ndarray:
    """The eager model's logits (tokens, vocabulary) of each of what is said, without a cache."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([prompt + said[:-1]]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 :].float().numpy()


def in_turns(contenders: dict[str, Contender], prompt: list[int], settings: Settings) -> dict[str, list[Said]]:
    """What every contender says, round by round; the first round is for warming up."""
    names = list(contenders)
    found: dict[str, list[Said]] = {name: [] for name in names}
    advance = shared.counter(f"{len(prompt)} tokens and {settings.new} more", settings.rounds + 1)
    for turn in range(settings.rounds + 1):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            said = contenders[name](prompt, settings.new)
            if turn:
                found[name].append(said)
        advance()
    return found


def prompts(checkpoint: Path, lengths: Sequence[int]) -> list[list[int]]:
    """Tokens of Python's documentation, as many as asked for."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(checkpoint)(" ".join(sentences.split()[0][:40]))["input_ids"]
    return [ids[:length] for length in lengths]


def measure(work: Path, settings: Settings, figures: Figures) -> None:
    """Export, load, ask in turns."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    checkpoint = work / "checkpoint"
    count = llamas.make(checkpoint, settings.shape)
    shared.say(f"{count / 1e6:.0f} M parameters")
    texts = work / "texts.txt"
    texts.write_text("\n".join(sentences.split()[1][:_CALIBRATED]) + "\n", encoding="utf-8")

    def exported(kind: str) -> Bundle:
        asked = ("--task", "text-generation", "--to", ",".join(TARGETS), "--max-length", str(_LENGTH), *KINDS[kind])
        asked += ("--calibrate", str(texts)) if KINDS[kind] else ()
        return shared.exported(checkpoint, work / f"{kind}.bundle", *asked)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        bundles = dict(zip(KINDS, pool.map(exported, KINDS), strict=True))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ours = {
        f"{target} {kind}": load(bundle.root, target=target, threads=1)
        for kind, bundle in bundles.items()
        for target in TARGETS
    }
    said = prompts(checkpoint, settings.prompts)
    contenders = {
        DYNAMIC: eager(model),
        STATIC: eager(model, cache_implementation="static", disable_compile=True),
    }
    if settings.compile_seconds:
        fast = compiled(model, said[0], settings.new, settings.compile_seconds)
        contenders |= {COMPILED: fast} if fast is not None else {}
    contenders |= {name: palmtop(pipeline) for name, pipeline in ours.items()}
    for prompt in said:
        _one_prompt(model, ours, contenders, prompt, settings, figures)
    _sizes(bundles, figures)


def _one_prompt(
    model: Any,
    ours: dict[str, Any],
    contenders: dict[str, Contender],
    prompt: list[int],
    settings: Settings,
    figures: Figures,
) -> None:
    found = in_turns(contenders, prompt, settings)
    wanted = found[DYNAMIC][0].ids
    logits = at_once(model, prompt, wanted)
    rows, raw = [], {}
    for name, rounds in found.items():
        near = agreement(ours[name], prompt, wanted, logits) if name in ours else None
        equal = _equal(rounds[0].ids, wanted)
        times = {base: _times(found, base, name) for base in (STATIC, DYNAMIC)}
        speed = {
            "prefill": len(prompt) / statistics.median(said.first for said in rounds),
            "decode": (settings.new - 1) / statistics.median(said.rest for said in rounds),
            "whole": settings.new / statistics.median(said.seconds for said in rounds),
        }
        raw[name] = {**speed, "times": times, "equal": equal, **(dataclasses.asdict(near) if near else {})}
        numbers = [f"{speed['prefill']:.0f}", f"{speed['decode']:.1f}", f"{speed['whole']:.1f}"]
        numbers += [f"{times[STATIC]:.2f}", f"{times[DYNAMIC]:.2f}", f"{equal} of {settings.new}"]
        numbers += [f"{near.error:.1e}", f"{near.cosine:.5f}", f"{100 * near.same:.0f} %"] if near else ["", "", ""]
        rows.append([name, *numbers])
    head = ["tokens a second", "prefill", "decode", "whole", "x static", "x dynamic", "first tokens equal"]
    head += ["logits: largest error", "cosine", "same choice"]
    figures.tables[f"{len(prompt)} tokens, and {settings.new} more"] = head, rows
    figures.raw[str(len(prompt))] = raw
    title = f"Tokens a second, {len(prompt)} tokens and {settings.new} more"
    kinds = ["decode", "whole"]
    figures.plots[title] = plots.bars(title, kinds, {name: [raw[name][kind] for kind in kinds] for name in raw})
    _bounds(found, len(prompt), raw, settings, figures)


def _bounds(
    found: dict[str, list[Said]], length: int, raw: dict[str, Any], settings: Settings, figures: Figures
) -> None:
    behind = f"after {length} tokens"
    for target in TARGETS:
        whole = f"{target} fp32"
        for base in (STATIC, COMPILED):
            if base in found:
                times = _times(found, base, whole)
                figures.bounds.append(Bound(f"{whole} against {base}, {behind}", times, _AS_FAST, least=True))
        for kind in ("int8", "int4"):
            times = _times(found, whole, f"{target} {kind}")
            figures.bounds.append(Bound(f"{target} {kind} against its fp32, {behind}", times, 1.0, least=True))
        equal = raw[whole]["equal"]
        figures.bounds.append(Bound(f"{whole}: tokens as generate's, {behind}", equal, settings.new, least=True))


def _times(found: dict[str, list[Said]], base: str, name: str) -> float:
    """How many times as fast as `base`: the median over the rounds, of whole answers."""
    pairs = zip(found[base], found[name], strict=True)
    return statistics.median(one.seconds / other.seconds for one, other in pairs)


def _equal(ids: list[int], wanted: list[int]) -> int:
    return next((place for place, (one, two) in enumerate(zip(ids, wanted, strict=True)) if one != two), len(wanted))


def _sizes(bundles: dict[str, Bundle], figures: Figures) -> None:
    rows = []
    for kind, bundle in bundles.items():
        for target in TARGETS:
            size = sum(file.size for file in bundle.manifest.files if file.path.startswith(f"{target}/"))
            rows.append([f"{target} {kind}", f"{size / 1e6:.1f}"])
    figures.tables["Size"] = ["", "MB"], rows


_NOTE = (
    "A Llama of SmolLM-135M's shape with random weights (`benchmarks/llamas.py`): 30 layers, 576 wide, 9 heads of "
    "which 3 have keys and values, a vocabulary of 49,152 whose table is the head as well. Greedy; `prefill` counts "
    "the prompt's tokens to the first new one, `decode` the new ones after it, `whole` both; `x` are medians over the "
    "rounds of paired ratios of whole answers. Bundles are exported for 256 tokens, plans made from 32 texts; "
    "`generate` makes its static cache as long as the answer. `first tokens equal`: up to the first that differs from "
    "`generate`'s with its dynamic cache. Logits are those of every step, given the reference's tokens, beside the "
    "eager model on the whole sequence without a cache; errors relative to their scale. Weights that learned nothing "
    "lose more to quantization than trained ones, so the plans here are not held to an agreement."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, to see that it runs; writes no page")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; writes no page")
    parser.add_argument("--rounds", type=int, help="of timing")
    parser.add_argument("--compile-seconds", type=int, help="how long torch.compile may take; 0: leave it out")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep bundles there, and take those that are there")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    settings = QUICK if options.quick else Settings()
    if options.rounds:
        settings = dataclasses.replace(settings, rounds=options.rounds)
    if options.compile_seconds is not None:
        settings = dataclasses.replace(settings, compile_seconds=options.compile_seconds)
    figures = Figures(versions=report.versions("torch", "transformers", "onnxruntime", "executorch"))
    with shared.folder(options.work) as work:
        measure(work, settings, figures)
    section = shared.Section("generation", "Text generation", "python benchmarks/generation.py", _NOTE)
    shared.publish(section, figures, as_json=options.json, write=not options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
