"""The table of markers as a page of Markdown; needs no extra."""

from __future__ import annotations

from types import MappingProxyType

from geomonitor.markers import BESIDE, MARKER_GROUPS, MARKERS, Marker

_COLUMNS = ("marker", "what it is", "state", "cost", "worse", "groups", "source")

_OPTIONS = MappingProxyType({"truth": "`truth=`", "gradients": "`coherence_probe=`"})
"""Of the monitor, by the state of what they measure."""

_INTRODUCTION = """\
# Markers

Every marker that geomonitor measures. This page is made by `geomonitor markers --markdown`; a test keeps it up to date.
The formulas stand in the docstrings of `geomonitor/markers/`.

- **state**: the `Metric` that gives it: `manifolds` `ManifoldGeometry`, `spectrum` `FeatureSpectrum`, `classes`
  `ClassStructure`, `points` `PointStatistics`, `logits` `LogitStatistics`; `shifts` the latter on shifted inputs;
  `views` `InstanceStructure`, and `ManifoldGeometry` of pairs of instances, on views of each item; `tokens` a function;
  `head` `GradientCoherence`, of features and logits of the same points;
  `routing` `RoutingStatistics`, of the routers of a mixture of experts; `factors` `FactorStructure`, of a probe set
  with two attributes; `truth` and `gradients` functions.
- **cost**: `low` sums over the features; `medium` a decomposition or all pairs of points, shared by the markers of a
  state; `high` an optimisation problem for each sampled direction; `forward` one more forward pass of the probe set;
  `backward` a forward and a backward pass for each of 64 points, twice.
- **worse**: the direction that is associated with worse transfer to *new classes*, or that is plainly worse (accuracy);
  a dash if neither is, or it is not known. It does not cover corrupted images of known classes: measure those with
  `GeometryMonitor(..., shifts=["noise", "blur"])`.
- **groups**: what `markers="default"`, `"paper"`, `"ssl"`, `"lm"` and `"moe"` take. `"all"` takes everything but
  cost `forward` and states `tokens` and `routing`. Without labels, `"default"` and `"all"` are what needs none, with
  the views'; of two attributes they have the factors. `truth=` and `coherence_probe=` are options of the monitor: what
  they measure is in no group, cannot be asked for by name, and is never judged.
- Left out, since they are the same as another one: IsoScore is `(participation_ratio - 1) / (N - 1)`, SelfCluster the
  participation ratio of unit rows, NESum the stable rank of centred features, dataset entropy `rankme`.
- Pathways of mixtures of experts and linear factors have the direction of their source, which is not confirmed here.
- NaN means undefined: no logits in the model's output, no linear head behind the layer, all features equal.
"""


def markers_page() -> str:
    """The table of markers as a page of Markdown: ``docs/markers.md``.

    >>> "| `dimension` | effective dimension of the class manifolds |" in markers_page()
    True
    """
    lines = [_INTRODUCTION, f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    for name, marker in (MARKERS | BESIDE).items():
        cells = [f"`{name}`", *_cells(name, marker)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(name: str, marker: Marker) -> list[str]:
    groups = [group for group, names in MARKER_GROUPS.items() if group != "all" and name in names]
    return [
        marker.description,
        marker.state,
        marker.cost,
        marker.worse or "-",
        ", ".join(groups) or _OPTIONS.get(marker.state if name in BESIDE else "", "-"),
        marker.source,
    ]
