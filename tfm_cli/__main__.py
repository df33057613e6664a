"""`python -m tfm_cli`, which is also what a launcher such as torchrun starts."""

from tfm_cli.cli import main

if __name__ == "__main__":
    main()
