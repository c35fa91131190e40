"""`proxscore compare` from a checkout: see `proxscore.commands.compare`."""

import sys

from proxscore.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
