"""The one hot operation of solo decoding, behind one differentiable call with interchangeable backends."""

from tdsm.decomposition.kernels.gated_sum import gated_sum

__all__ = ["gated_sum"]
