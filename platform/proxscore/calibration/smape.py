"""The symmetric absolute percentage error, as the M3 competition defines it.

    200 |y - f| / (|y| + |f|),    in percent, from 0 to 200

Makridakis and Hibon, The M3-competition: results, conclusions and implications (International Journal of Forecasting, 2000),
whose data are positive: the absolute values keep it within its range for others. It means little for targets near zero.
"""

from __future__ import annotations

import torch
from torch import Tensor


def symmetric_percentage_error(forecasts: Tensor, targets: Tensor) -> Tensor:
    """Elementwise; 0 where forecast and target are both 0."""
    scale = forecasts.abs() + targets.abs()
    return torch.where(scale > 0, 200 * (targets - forecasts).abs() / scale, 0.0)
