"""``python -m fastfactor``: the same as the console script."""

from .cli.app import main

main()
