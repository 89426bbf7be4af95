"""What an app calls: text, images or sounds in, results out, one module a task. Pipelines know nothing of formats.

A task's module is imported when a bundle of that task is opened: a new process has its first answer sooner.
"""

from __future__ import annotations

import importlib

from ..errors import RequestError
from ..manifest import Manifest
from ..session import Session
from ..tokenizer import Tokenizer
from .base import Pipeline

# Task name of a manifest -> its pipeline, as module.class. Adding a task is adding a module and a line here.
PIPELINES: dict[str, str] = {
    "text-classification": "text_classification.TextClassification",
    "token-classification": "token_classification.TokenClassification",
    "question-answering": "question_answering.QuestionAnswering",
    "fill-mask": "fill_mask.FillMask",
    "feature-extraction": "feature_extraction.FeatureExtraction",
    "sentence-similarity": "sentence_similarity.SentenceSimilarity",
    "multiple-choice": "multiple_choice.MultipleChoice",
    "text-generation": "text_generation.TextGeneration",
    "text2text-generation": "text2text_generation.Text2TextGeneration",
    "image-to-text": "image_to_text.ImageToText",
    "image-classification": "image_classification.ImageClassification",
    "object-detection": "object_detection.ObjectDetection",
    "image-segmentation": "image_segmentation.ImageSegmentation",
    "depth-estimation": "depth_estimation.DepthEstimation",
    "zero-shot-image-classification": "zero_shot_image_classification.ZeroShotImageClassification",
    "masked-im": "masked_im.MaskedImageModeling",
    "audio-classification": "audio_classification.AudioClassification",
    "audio-frame-classification": "audio_frame_classification.AudioFrameClassification",
    "audio-xvector": "audio_xvector.AudioXVector",
    "automatic-speech-recognition": "ctc.SpeechRecognitionCTC",
}

# The pipelines of a task for models that take no text: by what `preprocess` describes.
_WITHOUT_TEXT: dict[tuple[str, str], str] = {
    ("feature-extraction", "image"): "image_feature_extraction.ImageFeatureExtraction",
    ("feature-extraction", "audio"): "sounds.SoundFeatures",
}


def pipeline_of(task: str) -> type[Pipeline]:
    """The pipeline of a task, as models of text or of the task's own kind of input need it.

    Raises RequestError when there is none.
    """
    if task not in PIPELINES:
        raise RequestError(
            f"No pipeline runs the task '{task}'. Known: {', '.join(PIPELINES)}. "
            "Its artifacts can be run on arrays: Bundle.open(path).open_session().run(feeds)."
        )
    return _imported(PIPELINES[task])


def pipeline_class(manifest: Manifest) -> type[Pipeline]:
    """The pipeline of a bundle. Raises RequestError when there is none for its task."""
    if manifest.postprocess.get("output") == "sentence_embedding":
        return pipeline_of("sentence-similarity")  # an encoder whose artifact gives the finished vector
    if manifest.task == "automatic-speech-recognition" and manifest.generation:
        return _imported("speech.SpeechRecognition")  # by a decoder, not frame by frame
    for kind in manifest.preprocess if manifest.tokenizer is None else ():
        if (manifest.task, kind) in _WITHOUT_TEXT:
            return _imported(_WITHOUT_TEXT[manifest.task, kind])
    return pipeline_of(manifest.task)


def _imported(place: str) -> type[Pipeline]:
    module, name = place.split(".")
    return getattr(importlib.import_module(f".{module}", __name__), name)


def make_pipeline(manifest: Manifest, tokenizer: Tokenizer | None, session: Session) -> Pipeline:
    """A pipeline for a manifest, over a session of one of its artifacts."""
    return pipeline_class(manifest)(manifest, tokenizer, session)


def pipeline_over(manifest: Manifest, tokenizer: Tokenizer | None, session: Session) -> Pipeline | None:
    """A pipeline as `make_pipeline` gives it; None for tasks without one, and for bundles that lack its tokenizer."""
    if manifest.task not in PIPELINES or (tokenizer is None and pipeline_class(manifest).needs_tokenizer):
        return None
    return make_pipeline(manifest, tokenizer, session)


__all__ = ["PIPELINES", "Pipeline", "make_pipeline", "pipeline_class", "pipeline_of", "pipeline_over"]
