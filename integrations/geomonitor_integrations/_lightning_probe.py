"""A probe set that a Trainer's own data make up, before the first batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from geomonitor import _options
from geomonitor.errors import InputError
from geomonitor.probe.probe_set import ProbeSet
from geomonitor_integrations._lightning_checks import first_loader

LateProbe = Literal["val"] | Callable[[Any], Any]
"""``"val"``: points of the first validation loader; or a function of the Trainer that gives a ``ProbeSet``."""


class Late:
    """Makes the probe set when the Trainer has its loaders.

    Raises:
        InputError: neither ``"val"`` nor a function of the Trainer.
    """

    def __init__(self, probe: LateProbe, per_class: int) -> None:
        if isinstance(probe, str):
            _options.one_of("probe", probe, ("val",))
        else:
            _options.function("probe", probe, "trainer")
        self._probe, self._per_class = probe, per_class

    def probe_set(self, trainer: Any) -> ProbeSet:
        """The probe set; the same in every process.

        Raises:
            InputError: no validation loader; points that are also trained on; no probe set from the function.
        """
        if not isinstance(self._probe, str):
            made = self._probe(trainer)
            if not isinstance(made, ProbeSet):
                raise InputError(f"probe(trainer) must give a ProbeSet; got {type(made).__name__}")
            return made
        if not trainer.enable_validation or first_loader(trainer) is None:
            raise InputError('probe="val" needs a validation loader: give fit one, or use a ProbeSet')
        train = trainer.train_dataloader
        known = isinstance(train, DataLoader) and not isinstance(train.dataset, IterableDataset)
        return ProbeSet.from_dataset(first_loader(trainer), per_class=self._per_class, train=train if known else None)


def placeholder() -> ProbeSet:
    """Stands for the probe set until there is one, so that all options are checked when they are given."""
    return ProbeSet.from_dataset(TensorDataset(torch.zeros(4, 1), torch.tensor([0, 0, 1, 1])), per_class=2)
