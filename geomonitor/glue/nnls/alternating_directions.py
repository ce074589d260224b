"""Which columns are active, about: the alternating direction method of multipliers, for a batch of directions at once.

With a ridge ``x`` minimises ``1/2 |A x - t|^2 + ridge/2 |x|^2`` over ``x >= 0``. An iteration solves for ``x`` without
signs, and cuts negative values off a copy ``z``. The signs of a dichotomy do not change the inverse of ``K + (ridge +
rho) I``, so that one inverse and one product of matrices in float32 serve all directions. Where hundreds of columns are
active, block pivoting from this guess takes a few rounds, from nothing a hundred.

Source: Boyd, Parikh, Chu, Peleato, Eckstein, Found. Trends Mach. Learn. 3 (2011), 3.1, 3.4.3 and 5.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomonitor.glue.nnls.gram_problem import ActiveSets, GramProblem

# On random points (200 of 400 columns active, ridge 1e-4) 12 columns are wrong after 80 iterations, 3 after 160.
ITERATIONS = 120
# Between 1.5 and 1.8 (Boyd et al., 3.4.3).
OVER_RELAXATION = 1.6


def guess(problem: GramProblem) -> Tensor:
    """Columns that are active, about: ``(B, n)``, -1 where unused.

    Args:
        problem: of one group, with a ridge.

    >>> problem = GramProblem(torch.eye(2).double()[None], torch.tensor([[0.6, -0.8]]).double(),
    ...                       torch.ones(1, 2).double(), torch.tensor([0]), 1, ridge=1e-3)
    >>> guess(problem)
    tensor([[0]])
    """
    # Convergence is fastest for the geometric mean of the extreme curvatures: the ridge, and 1 of a unit column.
    rho = problem.ridge**0.5
    shifted = problem.gram[0].clone()
    shifted.diagonal().add_(problem.ridge + rho)
    # A multiple of `z` and of the right-hand side is taken into the matrix, and the signs into both.
    inverse = (torch.cholesky_inverse(torch.linalg.cholesky(shifted)) * rho).float()
    signs, target = problem.signs.float(), (problem.products / rho).float()
    z, u = torch.zeros_like(target), torch.zeros_like(target)
    for _ in range(ITERATIONS):
        x = ((target + z).sub_(u).mul_(signs) @ inverse).mul_(signs)
        u += x.mul_(OVER_RELAXATION).add_(z, alpha=1 - OVER_RELAXATION)
        z = u.clamp(min=0)
        u -= z
    return ActiveSets.of_dense(z, torch.ones(len(z), dtype=torch.bool, device=z.device)).columns
