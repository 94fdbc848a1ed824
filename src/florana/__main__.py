"""``python -m florana``."""

from florana.cli import main

if __name__ == "__main__":
    main()
