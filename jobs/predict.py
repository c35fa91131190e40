"""`proxscore predict` from a checkout: see `proxscore.commands.predict`."""

import sys

from proxscore.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
