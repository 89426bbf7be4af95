"""What an app calls: text, images or sounds in, results out, one module a task. Pipelines know nothing of formats."""

from __future__ import annotations

from ..errors import RequestError
from ..manifest import Manifest
from ..session import Session
from ..tokenizer import Tokenizer
from .audio_classification import AudioClassification
from .audio_frame_classification import AudioFrameClassification
from .audio_xvector import AudioXVector
from .base import Pipeline
from .ctc import SpeechRecognitionCTC
from .depth_estimation import DepthEstimation
from .feature_extraction import FeatureExtraction
from .fill_mask import FillMask
from .image_classification import ImageClassification
from .image_feature_extraction import ImageFeatureExtraction
from .image_segmentation import ImageSegmentation
from .image_to_text import ImageToText
from .masked_im import MaskedImageModeling
from .multiple_choice import MultipleChoice
from .object_detection import ObjectDetection
from .question_answering import QuestionAnswering
from .sentence_similarity import SentenceSimilarity
from .sounds import SoundFeatures
from .speech import SpeechRecognition
from .text2text_generation import Text2TextGeneration
from .text_classification import TextClassification
from .text_generation import TextGeneration
from .token_classification import TokenClassification
from .zero_shot_image_classification import ZeroShotImageClassification

# Task name of a manifest -> its pipeline. Adding a task is adding a module and a line here.
PIPELINES: dict[str, type[Pipeline]] = {
    pipeline.task: pipeline
    for pipeline in (
        TextClassification,
        TokenClassification,
        QuestionAnswering,
        FillMask,
        FeatureExtraction,
        SentenceSimilarity,
        MultipleChoice,
        TextGeneration,
        Text2TextGeneration,
        ImageToText,
        ImageClassification,
        ObjectDetection,
        ImageSegmentation,
        DepthEstimation,
        ZeroShotImageClassification,
        MaskedImageModeling,
        AudioClassification,
        AudioFrameClassification,
        AudioXVector,
        SpeechRecognitionCTC,
    )
}

# The pipelines of a task for models that take no text: by what `preprocess` describes.
_WITHOUT_TEXT: dict[tuple[str, str], type[Pipeline]] = {
    (FeatureExtraction.task, "image"): ImageFeatureExtraction,
    (FeatureExtraction.task, "audio"): SoundFeatures,
}


def pipeline_class(manifest: Manifest) -> type[Pipeline]:
    """The pipeline of a bundle. Raises RequestError when there is none for its task."""
    if manifest.postprocess.get("output") == "sentence_embedding":
        return SentenceSimilarity  # an encoder whose artifact gives the finished vector
    if manifest.task not in PIPELINES:
        raise RequestError(
            f"No pipeline runs the task '{manifest.task}'. Known: {', '.join(PIPELINES)}. "
            "Its artifacts can be run on arrays: Bundle.open(path).open_session().run(feeds)."
        )
    if manifest.task == SpeechRecognition.task and manifest.generation:
        return SpeechRecognition  # by a decoder, not frame by frame
    for kind in manifest.preprocess if manifest.tokenizer is None else ():
        if (manifest.task, kind) in _WITHOUT_TEXT:
            return _WITHOUT_TEXT[manifest.task, kind]
    return PIPELINES[manifest.task]


def make_pipeline(manifest: Manifest, tokenizer: Tokenizer | None, session: Session) -> Pipeline:
    """A pipeline for a manifest, over a session of one of its artifacts."""
    return pipeline_class(manifest)(manifest, tokenizer, session)


def pipeline_over(manifest: Manifest, tokenizer: Tokenizer | None, session: Session) -> Pipeline | None:
    """A pipeline as `make_pipeline` gives it; None for tasks without one, and for bundles that lack its tokenizer."""
    if manifest.task not in PIPELINES or (tokenizer is None and pipeline_class(manifest).needs_tokenizer):
        return None
    return make_pipeline(manifest, tokenizer, session)


__all__ = ["PIPELINES", "Pipeline", "make_pipeline", "pipeline_class", "pipeline_over"]
