"""`python -m palmtop.export`: the same as the `palmtop` command."""

from .cli import command

command()
