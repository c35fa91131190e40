"""`proxscore tune` from a checkout: see `proxscore.commands.tune`."""

import sys

from proxscore.commands.tune import main

if __name__ == "__main__":
    sys.exit(main())
