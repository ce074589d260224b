"""What a layer no longer sees: members of its fibers before and after a change, drawn from a generative prior.

- ``priors``: what is plausible; ``prior_training``: a recipe for a small prior of your own.
- ``layer``: the features of a layer as a differentiable function, with no trace on the model.
- ``control``, ``sampling``: guided sampling from a fiber.
- ``fiber_markers``, ``comparison``: numbers with errors, before and after at equal loss; ``saving``: as files.
- ``at_alarm``: in a run, at an alarm.
"""

from geomonitor.explain.at_alarm import Fibers
from geomonitor.explain.comparison import Comparison, compare_fibers
from geomonitor.explain.fiber_markers import Estimate, crossing, diversity_at, nearest
from geomonitor.explain.layer import layer_features
from geomonitor.explain.prior_training import train_prior
from geomonitor.explain.priors import DiffusersPrior, DiffusionPrior, FlowPrior, Prior
from geomonitor.explain.sampling import FiberSamples, sample_fibers

__all__ = [
    "Comparison",
    "DiffusersPrior",
    "DiffusionPrior",
    "Estimate",
    "FiberSamples",
    "Fibers",
    "FlowPrior",
    "Prior",
    "compare_fibers",
    "crossing",
    "diversity_at",
    "layer_features",
    "nearest",
    "sample_fibers",
    "train_prior",
]
