"""coremltools is imported without packages that it needs for other people's models, and leaves them to be imported."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
{before}
from palmtop.export.targets.coreml_compat import quiet
with quiet():
    import coremltools
print("sklearn" in sys.modules, "executorch" in sys.modules, coremltools._deps._HAS_EXECUTORCH)
import executorch.exir
print(executorch.exir.to_edge is not None)
"""


def said(before: str = "") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(before=before)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip().splitlines()


def test_packages_for_other_models_are_not_imported_and_can_be_afterwards():
    assert said() == ["False False False", "True"]


def test_a_program_that_uses_executorch_keeps_what_coremltools_does_with_it():
    assert said("import executorch.exir") == ["False True True", "True"]
