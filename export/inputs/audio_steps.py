"""A checkpoint's feature extractor as steps of data (`preprocess["audio"]`), proven to be it.

What an extractor does is code of transformers, so its class is translated here, and the translation is run beside it on
sounds before anything is exported. A class that is not here is refused with what can be done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...runtime.audio import AudioProcessor, Sound
from ...runtime.errors import DamagedError, RequestError, UnsupportedError

# How far features may be from the extractor's own, of their root mean square, on average and at worst. Extractors that
# compute in float32 are themselves this far from the exact values in bands close to their floor.
_MEAN_BOUND, _WORST_BOUND = 1e-4, 5e-3


def audio_preprocess(extractor: Any, names: Sequence[str]) -> dict[str, Any]:
    """The manifest's `preprocess["audio"]` for a transformers feature extractor.

    Args:
        names: the inputs that the model's forward takes; the mask is only made for those that have one.

    Raises:
        UnsupportedError: an extractor, or a setting of it, that the steps cannot express.
        DamagedError: a setting that is no number where it should be one.
    """
    kind = next((cls.__name__ for cls in type(extractor).__mro__ if cls.__name__ in _TRANSLATIONS), None)
    if kind is None:
        raise UnsupportedError(
            f"The feature extractor {type(extractor).__name__} cannot be expressed in a bundle. Known: "
            f"{', '.join(_TRANSLATIONS)}. Remedy: export the model's encoder with export_module, and compute "
            "its features in the app."
        )
    if getattr(extractor, "dither", 0.0):
        raise UnsupportedError(
            f"The feature extractor adds random noise (dither {extractor.dither}), so no two runs agree. "
            "Remedy: set dither to 0 in preprocessor_config.json."
        )
    try:
        data = _TRANSLATIONS[kind](extractor)
        data["sampling_rate"] = int(extractor.sampling_rate)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DamagedError(
            f"The settings of {type(extractor).__name__} in preprocessor_config.json make no sense: {error}. "
            "Remedy: copy that file of the checkpoint that it was fine-tuned from."
        ) from error
    data["input"] = extractor.model_input_names[0]
    masked = bool(getattr(extractor, "return_attention_mask", False)) and "attention_mask" in names
    data["mask"] = "attention_mask" if masked else None
    data["padding"] = {"value": float(extractor.padding_value), "side": extractor.padding_side}
    return data


def prove_features(extractor: Any, data: dict[str, Any], sounds: Sequence[tuple[str, Sound]]) -> None:
    """Run the steps beside the extractor.

    Raises:
        UnsupportedError: they give other features.
    """
    processor = AudioProcessor(data)
    for name, sound in sounds:
        try:
            ours = processor.features(sound)
        except RequestError:
            continue  # too short for this model
        theirs = extractor_features(extractor, data, sound)
        if ours.shape != theirs.shape:
            difference = f"shape {list(ours.shape)}, not {list(theirs.shape)}"
        else:
            scale = float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))) or 1.0
            gaps = np.abs(ours.astype(np.float64) - theirs) / scale
            if gaps.mean() <= _MEAN_BOUND and gaps.max() <= _WORST_BOUND:
                continue
            difference = f"{gaps.mean():.1e} apart on average, {gaps.max():.1e} at worst"
        raise UnsupportedError(
            f"palmtop's steps for {type(extractor).__name__} do not give its features on {name}: {difference}. "
            "Remedy: its settings are not those that palmtop knows; compare preprocessor_config.json with the "
            "class's defaults."
        )


def extractor_features(extractor: Any, data: dict[str, Any], sound: Sound) -> np.ndarray:
    """What the checkpoint's own extractor makes of one sound, without a batch axis."""
    made = extractor(sound.at(data["sampling_rate"]).samples, sampling_rate=data["sampling_rate"], return_tensors="np")
    return np.asarray(made[data["input"]][0], np.float32)


def _waveform(extractor: Any) -> dict[str, Any]:
    """Wav2Vec2 and the many that use its extractor."""
    if extractor.feature_size != 1:
        raise UnsupportedError(f"Waveforms of {extractor.feature_size} channels are not known; use one.")
    return {"steps": [{"step": "normalize", "epsilon": 1e-7}] if extractor.do_normalize else [], "hop": 1}


def _whisper(extractor: Any) -> dict[str, Any]:
    rate, hop = int(extractor.sampling_rate), int(extractor.hop_length)
    length = int(extractor.n_samples)
    mel = {
        "step": "mel_spectrogram",
        "rate": rate,
        "frame": int(extractor.n_fft),
        "hop": hop,
        "fft": int(extractor.n_fft),
        "window": "hann",
        "periodic": True,
        "center": True,
        "dc": True,
        "pre_emphasis": 0.0,
        "mels": int(extractor.feature_size),
        "low": 0.0,
        "high": 8000.0,
        "mel_scale": "slaney",
        "mel_norm": "slaney",
        "mel_triangles": "hertz",
        "floor": 1e-10,
        "log": "log10",
    }
    steps = [
        {"step": "cut", "length": length},
        {"step": "pad", "length": length, "value": float(extractor.padding_value)},
        mel,
        {"step": "drop_last"},
        {"step": "limit_range", "below": 8.0},
        {"step": "shift_scale", "add": 4.0, "by": 0.25},
        {"step": "transpose"},
    ]
    return {"steps": steps, "hop": hop}


def _kaldi(extractor: Any, window: str, mels: int) -> dict[str, Any]:
    """Kaldi's filter banks, as transformers computes them: 25 ms frames each 10 ms of a 16 kHz sound."""
    rate = int(extractor.sampling_rate)
    return {
        "step": "mel_spectrogram",
        "rate": rate,
        "frame": 400,
        "hop": 160,
        "fft": 512,
        "window": window,
        "periodic": False,
        "center": False,
        "dc": False,
        "pre_emphasis": 0.97,
        "mels": mels,
        "low": 20.0,
        "high": float(rate // 2),
        "mel_scale": "kaldi",
        "mel_norm": "none",
        "mel_triangles": "mels",
        "floor": 1.192092955078125e-07,
        "log": "ln",
    }


def _spectrogram_transformer(extractor: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        _kaldi(extractor, "hann", int(extractor.num_mel_bins)),
        {"step": "cut", "length": int(extractor.max_length)},
        {"step": "pad", "length": int(extractor.max_length), "value": 0.0},
    ]
    if extractor.do_normalize:
        steps.append({"step": "shift_scale", "add": -float(extractor.mean), "by": 1 / (2 * float(extractor.std))})
    return {"steps": steps, "hop": 160}


def _speech_to_text(extractor: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"step": "scale", "by": 32768.0},
        _kaldi(extractor, "povey", int(extractor.num_mel_bins)),
    ]
    if extractor.do_ceptral_normalize:
        means, variances = bool(extractor.normalize_means), bool(extractor.normalize_vars)
        steps.append({"step": "normalize_bands", "mean": means, "variance": variances, "epsilon": 0.0, "freedom": 0})
    return {"steps": steps, "hop": 160}


def _seamless(extractor: Any) -> dict[str, Any]:
    """SeamlessM4T's, which wav2vec2-bert uses: two neighbouring frames of filter banks as one."""
    stride = int(extractor.stride)
    steps: list[dict[str, Any]] = [
        {"step": "scale", "by": 32768.0},
        _kaldi(extractor, "povey", int(extractor.num_mel_bins)),
        {"step": "normalize_bands", "mean": True, "variance": True, "epsilon": 1e-7, "freedom": 1},
        {"step": "stack_frames", "count": stride, "value": float(extractor.padding_value)},
    ]
    return {"steps": steps, "hop": 160 * stride}


_TRANSLATIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Wav2Vec2FeatureExtractor": _waveform,
    "WhisperFeatureExtractor": _whisper,
    "ASTFeatureExtractor": _spectrogram_transformer,
    "Speech2TextFeatureExtractor": _speech_to_text,
    "SeamlessM4TFeatureExtractor": _seamless,
}
