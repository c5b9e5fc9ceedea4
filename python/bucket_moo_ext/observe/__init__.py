"""Looking at reductions: what a report says, over time and on this machine.

Knows the report and the public state, nothing below.
"""

from bucket_moo_ext.observe.recorder import Recorder
from bucket_moo_ext.observe.records import PartKey, PartRecord, Record
from bucket_moo_ext.observe.step_probe import StepProbe, TakenStep
from bucket_moo_ext.observe.summary import PairSummary, Summary

__all__ = ["PairSummary", "PartKey", "PartRecord", "Record", "Recorder", "StepProbe", "Summary", "TakenStep"]
