"""Classes of whole pictures."""

from __future__ import annotations

from typing import Any

from .images import ImagePipeline, pictures
from .labels import label_reader


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
        read = label_reader(self, top_k, function_to_apply)
        results = self.run_pictures(items, read, batch_size)
        return results[0] if single else results
