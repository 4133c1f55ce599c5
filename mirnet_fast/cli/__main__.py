"""python -m mirnet_fast.cli, as torchrun calls it."""

from . import main

if __name__ == "__main__":
    main()
