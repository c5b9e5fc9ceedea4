"""A report as numbers for a log."""

import bucket_moo_ext as moo


def metrics_of(report: moo.Report) -> dict[str, float]:
    """Few numbers under ``moo/``.

    ``moo/weight_<objective>`` is the mean of its weights over buckets, by elements; ``moo/norm_<objective>`` the norm
    of its whole gradient.
    """
    elements = sum(bucket.numel for bucket in report.buckets)
    weights = dict.fromkeys(report.objectives, 0.0)
    for bucket in report.buckets:
        for name, weight in zip(bucket.objectives, bucket.weights.tolist(), strict=True):
            weights[name] += weight * bucket.numel / elements
    norms = report.gramian.diagonal().sqrt().tolist()
    return {
        "moo/conflict_share": report.conflict_share,
        "moo/global_conflict_share": report.global_conflict_share,
        "moo/residual": report.residual,
        "moo/fallbacks": float(report.fallbacks),
        **{f"moo/weight_{name}": weight for name, weight in weights.items()},
        **{f"moo/norm_{name}": norm for name, norm in zip(report.objectives, norms, strict=True)},
    }
