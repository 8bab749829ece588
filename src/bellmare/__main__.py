"""`python -m bellmare` is the `bellmare` command."""

from bellmare.cli.main import main

main()
