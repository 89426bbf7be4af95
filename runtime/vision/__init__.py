"""Images in, a model's inputs out: what a checkpoint's image processor does, as data, without torch.

The data is `preprocess["image"]` of a bundle's manifest; `docs/bundle.md` describes it.
"""

from .load import as_image, load_image
from .processor import ImageProcessor, Picture

__all__ = ["ImageProcessor", "Picture", "as_image", "load_image"]
