"""`python -m app.cli`: the command `toban`, whatever the PATH."""

from app.cli import main

if __name__ == "__main__":
    main()
