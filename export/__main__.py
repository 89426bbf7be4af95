"""`python -m palmtop.export`: the same as the `palmtop` command."""

import sys

from .cli import main

sys.exit(main())
