"""Proposed rules for a module and a checkpoint whose names differ; nothing is applied.

In the order of the work: `wording` reads names, `roles` groups tensors by the part they play,
`packing` takes packed ones apart, `fitting` compares modules, `assignment` chooses, `matching`
goes through a whole checkpoint, `patterns` writes rules, `proposal` says how sure they are,
`target` reads what they are for.
"""

from fusion.proposals.proposal import Proposal, Settled, Suggestion, suggest, tensors_of
from fusion.proposals.target import propose

__all__ = ["Proposal", "Settled", "Suggestion", "propose", "suggest", "tensors_of"]
