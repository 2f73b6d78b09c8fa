"""`python -m not_fed` is `not-fed`."""

from __future__ import annotations

from not_fed.cli.main import main

if __name__ == "__main__":
    main()
