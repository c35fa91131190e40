"""What a person at a terminal, or a reader of a log, sees: lines of progress, and commands to paste.

:class:`proxscore.terminal.lines.Lines` shows them; it is not imported here, as workers of a cluster only write lines.
"""

from proxscore.terminal.progress import Progress, duration, say
from proxscore.terminal.spelling import command, near

__all__ = ["Progress", "command", "duration", "near", "say"]
