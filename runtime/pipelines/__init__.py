"""What an app calls: text, images or sounds in, results out, one module a task. Pipelines know nothing of formats."""

from __future__ import annotations

from ..errors import RequestError
from ..manifest import Manifest
from ..session import Session
from ..tokenizer import Tokenizer
from .base import Pipeline
from .feature_extraction import FeatureExtraction
from .fill_mask import FillMask
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .sentence_similarity import SentenceSimilarity
from .text_classification import TextClassification
from .token_classification import TokenClassification

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
    )
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
