"""Classes of whole pictures."""

from __future__ import annotations

from typing import Any

from ..results import Label
from .base import choice, whole
from .images import ImagePipeline, pictures
from .maths import ACTIVATIONS, best


class ImageClassification(ImagePipeline):
    """Scores of classes, best first."""

    task = "image-classification"
    outputs = ("logits",)

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int | None = 5,
        function_to_apply: str | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Classify a picture, or each of a list.

        Args:
            inputs: a file's path or bytes, an array (height, width, channels) of bytes, or a Pillow image.
            top_k: how many labels; None: all of them.
            function_to_apply: `softmax`, `sigmoid` or `none`; None does what the checkpoint was trained for.

        Returns:
            Labels, best first; for a list of inputs a list of such lists.

        Raises:
            RequestError: something that is no picture, or an option that does not exist.
            DamagedError: a damaged file.
        """
        items, single = pictures(inputs)
        top_k = whole("top_k", top_k)
        name = function_to_apply or self.manifest.postprocess.get("activation", "softmax")
        activation = ACTIVATIONS[choice("function_to_apply", name, ACTIVATIONS)]
        labels = self.id2label

        def read(outputs: dict[str, Any], _: Any) -> list[Label]:
            scores = activation(outputs["logits"])
            return [Label(labels[index], float(scores[index])) for index in best(scores, top_k)]

        results = self.run_pictures(items, read, batch_size)
        return results[0] if single else results
