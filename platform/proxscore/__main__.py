"""``python -m proxscore COMMAND ...`` is ``proxscore COMMAND ...``: also for ``torchrun -m proxscore``."""

import sys

from proxscore.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
