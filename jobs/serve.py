"""`proxscore serve` from a checkout: see `proxscore.commands.serve`."""

import sys

from proxscore.commands.serve import main

if __name__ == "__main__":
    sys.exit(main())
