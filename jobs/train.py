"""`proxscore train` from a checkout: see `proxscore.commands.train`."""

import sys

from proxscore.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
