"""The rows of the table of markers, by the state that they are computed from."""

from __future__ import annotations

from types import MappingProxyType

from geomonitor.markers.marker import Marker

_GLUE = "Chou et al. 2026, arXiv:2603.01879"
_COSINE = "mean cosine between {}, over ordered pairs of classes"
_ENTROPY = "Roy and Vetterli 2007; Del Giudice 2021"
_STABLE = "Rudelson and Vershynin 2007"
_RANKME = "Garrido et al. 2023, arXiv:2210.02885"
_DECAY = "Agrawal et al. 2022, arXiv:2202.05808"
_TUNNEL = "Masarczyk et al. 2023"
_EDGE = "Marchenko and Pastur 1967"
_NC = "Papyan, Han, Donoho 2020"
_OWN = "geomonitor"
_WANG = "Wang and Isola 2020, arXiv:2005.10242"
_ANISOTROPY = "Ethayarajh 2019, arXiv:1909.00512"
_PATHWAYS = "after Li, Fan, Zhou 2025, arXiv:2506.21551"
_FACTORS = "after arXiv:2602.24264"
_COHERENCE = "Chatterjee and Zielinski 2022, arXiv:2203.10036"

GEOMETRY = MappingProxyType(
    {
        "capacity": Marker("classes that can be separated per feature dimension", "manifolds", "high", None, _GLUE),
        "dimension": Marker("effective dimension of the class manifolds", "manifolds", "high", "lower", _GLUE),
        "radius": Marker(
            "effective radius of the class manifolds against their centres", "manifolds", "high", None, _GLUE
        ),
        "utility": Marker(
            "share of the capacity's cost that within-class variation bears", "manifolds", "high", "lower", _GLUE
        ),
        "center_alignment": Marker(_COSINE.format("centres"), "manifolds", "high", "lower", _GLUE),
        "axis_alignment": Marker(_COSINE.format("axes"), "manifolds", "high", None, _GLUE),
        "center_axis_alignment": Marker(_COSINE.format("centre and axis"), "manifolds", "high", None, _GLUE),
        "absolute_center_alignment": Marker("absolute " + _COSINE.format("centres"), "manifolds", "high", None, _GLUE),
        "absolute_axis_alignment": Marker("absolute " + _COSINE.format("axes"), "manifolds", "high", None, _GLUE),
        "absolute_center_axis_alignment": Marker(
            "absolute " + _COSINE.format("centre and axis"), "manifolds", "high", None, _GLUE
        ),
    }
)

SPECTRUM = MappingProxyType(
    {
        "participation_ratio": Marker(
            "directions that carry variance", "spectrum", "medium", "lower", "Gao et al. 2017"
        ),
        "numerical_rank": Marker("singular values above 1e-3 of the largest", "spectrum", "medium", "lower", _TUNNEL),
        "effective_rank": Marker("exponential entropy of the eigenvalues", "spectrum", "medium", "lower", _ENTROPY),
        "stable_rank": Marker(
            "squared Frobenius norm over squared spectral norm, not centred", "spectrum", "medium", "lower", _STABLE
        ),
        "rankme": Marker(
            "exponential entropy of the singular values, not centred", "spectrum", "medium", "lower", _RANKME
        ),
        "spectral_decay": Marker(
            "exponent of the power law of the eigenvalues, ranks 11 to 100", "spectrum", "medium", None, _DECAY
        ),
        "spectral_decay_r2": Marker("how well that power law fits, at most 1", "spectrum", "medium", None, _DECAY),
        "top_eigenvalue_share": Marker(
            "share of the variance in its largest direction", "spectrum", "medium", None, _OWN
        ),
        "spectral_outliers": Marker("eigenvalues above the edge of pure noise", "spectrum", "medium", None, _EDGE),
        "variance_above_edge": Marker("share of the variance above that edge", "spectrum", "medium", None, _EDGE),
        "mp_distance": Marker(
            "Wasserstein distance of the eigenvalues over their mean from those of noise",
            "spectrum",
            "medium",
            None,
            _EDGE,
        ),
    }
)

PER_CLASS = MappingProxyType(
    {
        f"{name}_per_class": Marker(
            f"{row.description}; within each class, averaged", "points", "medium", row.worse, row.source
        )
        for name, row in SPECTRUM.items()
    }
)

CLASSES = MappingProxyType(
    {
        "nc1": Marker("within-class covariance in units of the between-class one", "classes", "low", "lower", _NC),
        "nc1_ratio": Marker("within-class variance over between-class variance", "classes", "low", "lower", _NC),
        "cdnv": Marker(
            "variance of two classes over their squared distance", "classes", "low", "higher", "Galanti et al. 2021"
        ),
        "nc2_equinorm": Marker(
            "variation of the norms of the class means; 0 in a simplex", "classes", "low", None, _NC
        ),
        "nc2_equiangular": Marker("distance of the class means' angles from a simplex", "classes", "low", None, _NC),
        "nc3": Marker(
            "distance of the head's weights from the class means; NaN without a linear head",
            "classes",
            "low",
            None,
            _NC,
        ),
        "nc4": Marker(
            "share of points on which head and nearest class mean disagree; NaN without a linear head",
            "points",
            "low",
            None,
            _NC,
        ),
    }
)

POINTS = MappingProxyType(
    {
        "feature_distance": Marker("mean distance of two points", "points", "medium", None, _GLUE),
        "within_class_distance": Marker("mean distance of two points of a class", "points", "medium", "lower", _GLUE),
        "angle": Marker("mean angle of two points seen from the origin, radians", "points", "medium", None, _GLUE),
        "active_fraction": Marker("share of entries above 1e-6 in magnitude", "points", "low", "lower", _GLUE),
        "dead_units": Marker("share of units that no point activates", "points", "low", "higher", _OWN),
        "mean_covariance": Marker("mean absolute covariance of two units", "points", "low", "lower", _GLUE),
        "mean_norm": Marker("mean length of a feature vector", "points", "low", None, _OWN),
        "norm_variation": Marker("standard deviation of the lengths over their mean", "points", "low", None, _OWN),
        "intrinsic_dimension": Marker(
            "dimension that nearest neighbours see (TwoNN)", "points", "medium", None, "Facco et al. 2017"
        ),
        "uniformity": Marker(
            "how evenly directions cover the sphere: log of a mean Gaussian kernel; 0 in a collapse",
            "points",
            "medium",
            "higher",
            _WANG,
        ),
        "mean_cosine": Marker("mean cosine of two points: the anisotropy", "points", "low", None, _ANISOTROPY),
        "centred_mean_cosine": Marker(
            "mean cosine of two points, their mean removed", "points", "low", None, _ANISOTROPY
        ),
        "top_channel_share": Marker(
            "share of the mean square that the largest unit bears", "points", "low", None, _OWN
        ),
        "drift": Marker(
            "1 - CKA to the reference measurement of the same points", "points", "medium", None, "Kornblith et al. 2019"
        ),
    }
)

FACTORS = MappingProxyType(
    {
        "linear_factor_score": Marker(
            "how far the parts of two attributes add up; 1: wholly, 0: as without any structure; unproven",
            *("factors", "low", "lower", _FACTORS),
        ),
        "factor_orthogonality": Marker(
            "mean absolute cosine between the parts of two attributes; 0 if orthogonal; unproven",
            *("factors", "low", "higher", _FACTORS),
        ),
    }
)

LOGITS = MappingProxyType(
    {
        "accuracy": Marker("share of probe points classified right", "logits", "low", "lower", _OWN),
        "confidence": Marker("mean largest softmax probability", "logits", "low", None, _GLUE),
        "entropy": Marker("mean entropy of the softmax, nats", "logits", "low", None, _GLUE),
        "energy": Marker("mean of -logsumexp of the logits", "logits", "low", None, "Liu et al. 2020"),
        "margin": Marker("logit of the class less the largest other one", "logits", "low", None, _GLUE),
        "auroc": Marker("how well confidence separates right answers from wrong ones", "logits", "low", "lower", _GLUE),
        "confident_accuracy": Marker(
            'accuracy at a confidence of at least 0.95 (the paper\'s "ATC score")', "logits", "low", "lower", _GLUE
        ),
        "calibration_error": Marker(
            "expected calibration error, 15 bins", "logits", "low", "higher", "Naeini et al. 2015; Guo et al. 2017"
        ),
    }
)

SHIFTS = MappingProxyType(
    {
        f"accuracy_under_{shift}": Marker(f"accuracy on {what}", "shifts", "forward", "lower", _OWN)
        for shift, what in (
            ("noise", "images with Gaussian noise"),
            ("blur", "blurred images"),
            ("brightness", "brighter images"),
            ("contrast", "images of half the contrast"),
            ("rotation", "images turned by 20 degrees"),
        )
    }
)

VIEWS = MappingProxyType(
    {
        "lidar": Marker(
            "exponential entropy of the between-instance covariance in units of the within-instance one",
            "views",
            "forward",
            "lower",
            "Thilak et al. 2023, arXiv:2312.04000",
        ),
        "instance_snr": Marker(
            "variance between instances over variance within; 0 for noise", "views", "forward", "lower", _OWN
        ),
        "alignment": Marker("mean squared distance of two views of an instance", "views", "forward", None, _WANG),
        "instance_capacity": Marker(
            "capacity of instance manifolds, over pairs of instances", "views", "forward", "lower", _GLUE
        ),
        "instance_dimension": Marker(
            "effective dimension of instance manifolds, over pairs; no direction is known",
            "views",
            "forward",
            None,
            _GLUE,
        ),
        "instance_radius": Marker(
            "effective radius of instance manifolds, over pairs", "views", "forward", None, _GLUE
        ),
        "instance_utility": Marker(
            "share of the cost of separating two instances that their views bear", "views", "forward", None, _GLUE
        ),
    }
)

TOKENS = MappingProxyType(
    {
        "token_entropy": Marker(
            "matrix entropy of the tokens of a sequence, as a share of its largest value",
            "tokens",
            "medium",
            None,
            "Skean et al. 2025, arXiv:2502.02013",
        ),
    }
)

HEAD = MappingProxyType(
    {
        "coherence": Marker(
            "what the loss gradients of two points have in common, in the last layer; NaN without a linear head",
            "head",
            "low",
            None,
            _COHERENCE,
        ),
    }
)

ROUTING = MappingProxyType(
    {
        "router_load_entropy": Marker(
            "how evenly the experts of a mixture are used; 1 if evenly, 0 if one is", "routing", "low", "lower", _OWN
        ),
        "dead_experts": Marker(
            "share of the experts that no token is sent to; NaN with too few tokens", "routing", "low", "higher", _OWN
        ),
        "router_entropy": Marker(
            "mean entropy of a router's probabilities, as a share of its largest value", "routing", "low", None, _OWN
        ),
        "pathway_distance": Marker(
            "share of its experts that an item does not share with another one; unproven",
            *("routing", "low", "higher", _PATHWAYS),
        ),
        "pathway_consistency": Marker(
            "cosine of what two successive routers choose; unproven", "routing", "low", "lower", _PATHWAYS
        ),
    }
)

TRUTH = MappingProxyType(
    {
        "transfer_accuracy": Marker(
            "accuracy of ridge regression on new classes, five folds", "truth", "forward", "lower", _OWN
        ),
        "transfer_few_shot": Marker(
            "accuracy of the nearest centroid of five shots on new classes",
            "truth", "forward", "lower", "Sorscher et al. 2022, PNAS",
        ),
        "transfer_knn": Marker(
            "accuracy of the 20 nearest neighbours on new classes", "truth", "forward", "lower", "Wu et al. 2018"
        ),
        "knn_accuracy": Marker(
            "accuracy of the 20 nearest neighbours on the probe set", "truth", "medium", "lower", "Wu et al. 2018"
        ),
    }
)  # fmt: skip

GRADIENTS = MappingProxyType(
    {
        "network_coherence": Marker(
            "what the loss gradients of two points have in common, in all parameters",
            *("gradients", "backward", None, _COHERENCE),
        ),
    }
)
