"""`proxscore forecast` from a checkout: see `proxscore.commands.forecast`."""

import sys

from proxscore.commands.forecast import main

if __name__ == "__main__":
    sys.exit(main())
