"""Classes of whole sounds."""

from __future__ import annotations

from typing import Any

from .labels import label_reader
from .sounds import SoundPipeline


class AudioClassification(SoundPipeline):
    """Scores of the classes of a sound, best first."""

    task = "audio-classification"
    outputs = ("logits",)

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int | None = 5,
        function_to_apply: str | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """Classify a sound, or each of a list.

        Args:
            inputs: the path of a WAV file, its bytes, an array (samples,) at `sampling_rate`, or a mapping of `array`
                and `sampling_rate`; or a list of these.
            top_k: how many labels; None gives all.
            function_to_apply: `softmax`, `sigmoid` or `none`; None does what the checkpoint was trained for.

        Returns:
            Labels, best first; for a list of inputs a list of such lists.

        Raises:
            RequestError: something that is no sound, or an option that does not exist.
        """
        sounds, single = self.listed_sounds(inputs)
        read = label_reader(self, top_k, function_to_apply)
        results = self.run_sounds(sounds, read, batch_size)
        return results[0] if single else results
