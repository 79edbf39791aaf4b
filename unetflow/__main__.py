"""Let ``python -m unetflow`` be the command line."""

from unetflow.cli import main

if __name__ == "__main__":
    main()
