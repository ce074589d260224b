"""The doctests of an adapter are collected if its framework is installed."""

from __future__ import annotations

import importlib.util

FRAMEWORK_OF = {
    "transformers": "transformers",
    "_transformers_checkpoint": "transformers",
    "ignite": "ignite",
    "keras": "keras",
    "_keras_layers": "keras",
    "skorch": "skorch",
    "fastai": "fastai",
}
collect_ignore = [
    f"geomonitor_integrations/{adapter}.py"
    for adapter, framework in FRAMEWORK_OF.items()
    if importlib.util.find_spec(framework) is None
]
