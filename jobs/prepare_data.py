"""`proxscore prepare-data` from a checkout: see `proxscore.commands.prepare_data`."""

import sys

from proxscore.commands.prepare_data import main

if __name__ == "__main__":
    sys.exit(main())
