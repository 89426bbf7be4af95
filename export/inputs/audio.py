"""Sounds: a checkpoint's feature extractor makes a model's inputs, as steps of data that a phone runs too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtime.audio import AudioProcessor, Sound, as_sound, write_wav
from ...runtime.audio.wav import format_wav, parse_wav
from ...runtime.errors import RequestError
from ...runtime.golden import GoldenCase
from ...runtime.manifest import Dim, TensorSpec
from ..reference import Reference
from ..source import Source
from ..speech import frame_times
from . import Batches, Feeds, Inputs, sounds
from .audio_steps import audio_preprocess, prove_features

# Without --max-length, whichever is less: attention costs the square of the frames, and where memory is planned ahead
# (ExecuTorch) each call costs that of the longest sound.
DEFAULT_SECONDS, _MOST_FRAMES = 10.0, 1000
# The shortest sound that an artifact takes (a shorter one is padded to it): the first of these that the model takes.
_SHORTEST = (0.1, 0.2, 0.4, 0.8, 1.6)
# Their heads ask each row's length in a Python loop, which no program can hold; a sound by itself needs no mask.
_WITHOUT_MASK = ("audio-xvector",)
# The most tokens of a decoder's input that is fed beside a sound (a model of two stacks without its head).
_DECODER_TOKENS = 64


@dataclass(frozen=True)
class SoundInputs:
    """Makes a model's inputs from sounds. `tokens`: how many kinds of them its decoder takes, 0 without a decoder."""

    processor: AudioProcessor
    length: Dim
    tokens: int

    def feeds(self, made: Sequence[Sound], seed: int = 0) -> Feeds:
        """A batch as the model takes it, padded to the longest."""
        features = [self.processor.features(sound.at(self.processor.rate)) for sound in made]
        feeds: Feeds = dict(self.processor.batch(features, self.length))
        if self.tokens:
            random = np.random.default_rng([seed, len(made)])
            size = (len(made), 3 + (seed * 5) % 11)
            feeds["decoder_input_ids"] = random.integers(0, self.tokens, size, dtype=np.int64)
        return feeds

    def exactly(self, steps: int, seed: int) -> Feeds:
        """One row of speech of exactly so many steps of the input."""
        rate, axis = self.processor.rate, self.processor.time_axis
        features = self.processor.features(sounds.speech(self.processor.seconds(steps) + 0.1, rate, seed))
        cut = np.take(features, np.arange(steps), axis=axis)
        spoken = sounds.speech(min(1.0, self.most_seconds), rate, seed)
        return {**self.feeds([spoken], seed), **self.processor.batch([cut])}

    def within(self, seconds: float) -> float:
        """That long, or as near to it as the model takes."""
        return max(min(seconds, self.most_seconds), self.processor.seconds(self.length.min or 0))

    @property
    def most_seconds(self) -> float:
        return self.processor.seconds(self.length.largest or 0)


def audio_inputs(
    source: Source,
    model: torch.nn.Module,
    takes: set[str],
    max_length: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Inputs:
    """What a model is fed that takes sounds.

    Args:
        takes: the names of the parameters of its `forward`.
        max_length, lengths: longest input, and the only lengths, in steps of the model's input: samples of a waveform,
            frames of a spectrogram. Of a model with a decoder they count its tokens, and say nothing of sounds.

    Raises:
        RequestError: the model takes no sound of these lengths, or the checkpoint has no feature extractor.
        UnsupportedError: a feature extractor that cannot be expressed as data.
    """
    if source.feature_extractor is None:
        raise RequestError(
            f"{source.id} has no preprocessor_config.json, so nothing says how sounds become its inputs. Remedy: copy "
            "that file of the checkpoint that it was fine-tuned from."
        )
    named = takes - ({"attention_mask"} if source.task.name in _WITHOUT_MASK else set())
    data = audio_preprocess(source.feature_extractor, sorted(named))
    processor = AudioProcessor(data)
    prove_features(source.feature_extractor, data, sounds.probes(processor.rate, 30.0))
    tokens = _decoder_tokens(model) if "decoder_input_ids" in takes else 0
    if "decoder_input_ids" in takes:
        max_length, lengths = None, None
    asked = max(lengths) if lengths else max_length
    length, notes = _length(source, model, SoundInputs(processor, Dim(symbol="sequence", min=1), tokens), asked)
    if lengths and not all(map(length.admits, lengths)):
        raise RequestError(f"{source.id} takes {length} steps of its input; --lengths {lengths} are others.")
    inputs = SoundInputs(processor, length, tokens)
    sizes = tuple(lengths) if lengths else (length.largest or 0,)

    def write(root: Path) -> None:
        (root / "golden").mkdir(exist_ok=True)
        for name, sound in _golden_sounds(inputs):
            write_wav(root / "golden" / f"{name}.wav", sound.samples, sound.rate)

    return Inputs(
        specs=_specs(inputs),
        example={name: torch.from_numpy(array) for name, array in inputs.feeds(_example(inputs), seed=5).items()},
        batches=lambda: _batches(inputs, sizes),
        golden=lambda reference: _golden(inputs, reference),
        calibration=lambda path: _calibration(inputs, path),
        lines=lambda lines: _lines(inputs, lines),
        preprocess={"audio": data},
        write=write,
        notes=notes,
    )


def _decoder_tokens(model: torch.nn.Module) -> int:
    """How many tokens there are for the decoder of a model without its head."""
    config: Any = model.config
    return int(config.get_text_config(decoder=True).vocab_size)


def _specs(inputs: SoundInputs) -> tuple[TensorSpec, ...]:
    """Names, dtypes and axes: everything but batch and time is of one size."""
    processor, batch = inputs.processor, Dim(symbol="batch", min=1)
    one = inputs.feeds([_spoken(inputs, min(1.0, inputs.most_seconds), 0)])
    specs = []
    for name, array in one.items():
        dims = [batch, *(Dim(size=size) for size in array.shape[1:])]
        if name in (processor.input, processor.mask):
            dims[1 + (processor.time_axis if name == processor.input else 0)] = inputs.length
        else:
            dims[1] = Dim(symbol="decoder_sequence", min=1, max=_DECODER_TOKENS)
        specs.append(TensorSpec(name, str(array.dtype), tuple(dims)))
    return tuple(specs)


def _length(
    source: Source, model: torch.nn.Module, inputs: SoundInputs, asked: int | None
) -> tuple[Dim, tuple[str, ...]]:
    """The time axis: of one size where the features are, else from what the model needs to what was asked for."""
    processor = inputs.processor
    short, long = (inputs.feeds([sounds.speech(seconds, processor.rate, 0)]) for seconds in (1.0, 1.7))
    axis = 1 + processor.time_axis
    sizes = short[processor.input].shape[axis], long[processor.input].shape[axis]
    if sizes[0] == sizes[1]:
        return Dim(size=sizes[0]), ()  # as the feature extractor cuts and pads, whatever is asked for
    least = _least(source, model, inputs)
    steps = processor.rate / processor.hop
    if asked is not None and asked < least:
        asked = None  # tokens may have been meant: the note tells what it became
    frames = frame_times(source.config).get("frames")
    limit = _MOST_FRAMES * frames["stride"] if frames is not None else DEFAULT_SECONDS * steps
    most = asked or max(int(min(DEFAULT_SECONDS * steps, limit)), 2 * least)
    note = f"Exported for sounds of up to {most / steps:g} s ({most} steps of the input; see --max-length)."
    return Dim(symbol="sequence", min=least, max=most), () if asked else (note,)


def _least(source: Source, model: torch.nn.Module, inputs: SoundInputs) -> int:
    """The fewest steps of the input, among a few, that the model makes something finite of."""
    for seconds in _SHORTEST:
        try:
            feeds = inputs.feeds([sounds.speech(seconds, inputs.processor.rate, 0)])
            with torch.no_grad():
                result = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}, return_dict=True)
        except Exception:
            continue
        tensors = [value for value in result.values() if isinstance(value, torch.Tensor)]
        if tensors and all(bool(torch.isfinite(value).all()) and value.numel() for value in tensors):
            return int(feeds[inputs.processor.input].shape[1 + inputs.processor.time_axis])
    raise RequestError(f"{source.id} runs on none of our sounds of up to {_SHORTEST[-1]} s: its settings do not fit.")


def _spoken(inputs: SoundInputs, seconds: float, seed: int, level: float = 0.3) -> Sound:
    """Speech of that length, or as near to it as the model takes."""
    return sounds.speech(inputs.within(seconds), inputs.processor.rate, seed, level)


def _example(inputs: SoundInputs) -> list[Sound]:
    """Two sounds to trace with, one with padding where there are masks."""
    return [_spoken(inputs, 1.37, 100), _spoken(inputs, 1.01 if inputs.processor.mask else 1.37, 101)]


def _batches(inputs: SoundInputs, sizes: Sequence[int]) -> Batches:
    """Sounds of several kinds and lengths, alone and in batches; none is what the model was captured with.

    Args:
        sizes: steps of the input that are among the cases exactly: an artifact may take no others.
    """
    rate = inputs.processor.rate
    most = int(inputs.most_seconds * rate)

    def cut(sound: Sound) -> Sound:
        return Sound(sound.samples[:most], rate)

    mixed = (0.9, 1.6, 0.5) if inputs.processor.mask else (0.9, 0.9, 0.9)
    batches = [
        ("speech", [_spoken(inputs, 0.63, 1)]),
        ("longer speech", [_spoken(inputs, 2.21, 2)]),
        ("quiet speech", [_spoken(inputs, 1.13, 3, level=0.02)]),
        ("noise", [cut(sounds.noise(0.8, rate, 4))]),
        ("batch of 3", [_spoken(inputs, seconds, 5 + i) for i, seconds in enumerate(mixed)]),
        ("tone and pause", [cut(sounds.pause(sounds.tone(0.9, rate, 440.0), 0.6))]),
    ]
    feeds = [(name, inputs.feeds(made, seed)) for seed, (name, made) in enumerate(batches)]
    exact = sizes if not inputs.length.is_constant else ()
    return feeds + [(f"{size} steps", inputs.exactly(size, 40 + i)) for i, size in enumerate(exact)]


def _as_written(sound: Sound) -> Sound:
    """A sound as it is read from a file of 16 bits."""
    rows, rate = parse_wav(format_wav(sound.samples, sound.rate))
    return Sound(rows[0], rate)


def _golden_sounds(inputs: SoundInputs) -> list[tuple[str, Sound]]:
    """The sounds of the golden vectors by name."""
    made = [
        ("speech", _spoken(inputs, 1.17, 21)),
        ("short-speech", _spoken(inputs, 0.45, 22, level=0.7)),
        (
            "tone",
            sounds.tone(inputs.within(0.6), inputs.processor.rate, 523.25),
        ),
    ]
    return [(name, _as_written(sound)) for name, sound in made]


def _golden(inputs: SoundInputs, reference: Reference) -> list[GoldenCase]:
    cases = []
    for seed, (name, sound) in enumerate(_golden_sounds(inputs)):
        feeds = inputs.feeds([sound], seed)
        case = reference.case(name, feeds, most=512)
        made = tuple(key for key in (inputs.processor.input, inputs.processor.mask) if key is not None)
        outputs = {key: rows[0] for key, rows in case.expected.items()}
        cases.append(GoldenCase(name, feeds, outputs, media=("audio", f"golden/{name}.wav"), made=made))
    return cases


def _calibration(inputs: SoundInputs, path: Path | None) -> list[Feeds]:
    """Inputs of one row: the user's sounds (a folder of WAV files, or a file that lists them), or palmtop's own."""
    if path is None:
        made = [_spoken(inputs, 0.4 + 0.11 * (seed % 17), 200 + seed, 0.05 + 0.05 * (seed % 9)) for seed in range(48)]
        made += [sound for _, sound in sounds.probes(inputs.processor.rate, inputs.most_seconds)]
    else:
        made = [as_sound(file, inputs.processor.rate) for file in _listed(path)]
        most = int(inputs.most_seconds * inputs.processor.rate)
        made = [Sound(sound.samples[:most], sound.rate) for sound in made]
    return [inputs.feeds([sound], seed) for seed, sound in enumerate(made)]


def _listed(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".wav")
    elif path.suffix.lower() == ".wav":
        files = [path]
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{path} cannot be read: {error}.") from error
        files = [path.parent / line.strip() for line in lines if line.strip()]
    if not files:
        raise RequestError(f"{path} holds no WAV files.")
    return files


def _lines(inputs: SoundInputs, lines: Sequence[Any]) -> Batches:
    """Sounds of the user's: each line is the path of a WAV file."""
    return [(Path(str(line)).name, inputs.feeds([as_sound(str(line), inputs.processor.rate)])) for line in lines]
