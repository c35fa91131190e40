"""`proxscore evaluate` from a checkout: see `proxscore.commands.evaluate`."""

import sys

from proxscore.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
