"""Pictures with parts of them hidden, and what a model thinks is there."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import RequestError
from .images import ImagePipeline, pictures


class MaskedImageModeling(ImagePipeline):
    """Reconstructs what patches that it may not see look like."""

    task = "masked-im"
    outputs = ("reconstruction",)
    extra = ("bool_masked_pos",)

    def __call__(self, inputs: Any, *, mask: Any = None, batch_size: int | None = None) -> Any:
        """Reconstruct a picture, or each of a list.

        Args:
            mask: (patches,) or (rows, columns) of patches, true where the model may not look; None: every second patch.

        Returns:
            (channels, height, width) float32 in the values of the model's input; for a list of inputs a list of them.

        Raises:
            RequestError: something that is no picture, or a mask of another size.
            DamagedError: a damaged file.
        """
        items, single = pictures(inputs)
        hidden = self._hidden(mask)

        def more(rows: int) -> dict[str, np.ndarray]:
            return {"bool_masked_pos": np.repeat(hidden[None], rows, axis=0)} if hidden is not None else {}

        results = self.run_pictures(items, lambda outputs, _: outputs["reconstruction"], batch_size, more)
        return results[0] if single else results

    def _hidden(self, mask: Any) -> np.ndarray | None:
        spec = self.input("bool_masked_pos")
        if spec is None:
            if mask is not None:
                raise RequestError("This model takes no mask.")
            return None
        patches = spec.dims[1].largest or 0
        if mask is None:
            return np.arange(patches) % 2 == 0
        found = np.asarray(mask).reshape(-1) != 0
        if len(found) != patches:
            raise RequestError(f"The mask is of {len(found)} patches; a picture has {patches}.")
        return found
