"""What an optimizer knows of its own convergence: statistics of a few numbers of every tensor, over the last steps.

At the optimum the expected curvature statistic is one and the expected score at the mean zero:

    E k = Lambda* / Lambda = (sd / sd*)^2,          E u = (mean* - mean) / sd   (times k),

with Lambda* the precision that the objective asks for at the current iterate. So averages of k and u over steps measure how
far standard deviations and mean are from where they should be, which the size of their movement does not: a precision that a
large penalty holds does not move either. As k's own error is known (its noise is fresh in every step), so is what the
averages can tell.

Watched are *probes*: a few numbers of every row of a tensor (all of a small one), the same ones in every run. Sums are kept
over two windows, of which the older one is complete: together the last tenth to fifth of the steps, at any time, whatever the
length of the run. A window of n steps begins at step 9 n; beyond 4,096 steps, some are left out. Sharded parameters are
watched by shards, without communication. The sums, 20 numbers for each that is watched, are saved with the optimizer's state;
of a state without them, windows begin anew.
"""

from proxscore.inference.convergence.averages import Probed
from proxscore.inference.convergence.runaway import RunawayError
from proxscore.inference.convergence.watched import KEY
from proxscore.inference.convergence.windows import windows

__all__ = ["KEY", "Probed", "RunawayError", "windows"]
