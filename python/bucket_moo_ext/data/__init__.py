"""Batches of one objective: samplers that cut a data set by labels, and a stream that deals by label."""

from bucket_moo_ext.data.samplers import ObjectiveBatchSampler, ObjectiveSampler
from bucket_moo_ext.data.stream import ObjectiveStream

__all__ = ["ObjectiveBatchSampler", "ObjectiveSampler", "ObjectiveStream"]
