"""`python -m thorad`: the same as the command `thorad`."""

from thorad.cli import main

if __name__ == "__main__":
    main()
