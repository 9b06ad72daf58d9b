"""`python -m rmtjax` is the command `rmtjax`."""

from rmtjax.cli import main

if __name__ == "__main__":
    main()
