"""`python -m bertxfer_fast` is the `bertxfer` command."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
