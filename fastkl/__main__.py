"""``python -m fastkl``: the command line."""

from fastkl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
