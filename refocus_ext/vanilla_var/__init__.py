"""A stand-in for upstream VAR, for machines where the submodule `var_upstream/` cannot be fetched.

It was written for this project from upstream's facts: parameter names and shapes, and the order of floating-point and
random-number operations. The same seed gives the same weights, tokens, logits, gradients and images on a CPU, to the
bit, and state dicts are interchangeable; `tests/vanilla_var/test_conformance.py` checks this wherever the submodule is available.
It covers only what the project calls: no fused kernels, no progressive training, no Hub wrapper. Nothing here
prints, needs a process group, or keeps a device for the whole process.
"""

from refocus_ext.vanilla_var.quantizer import Phi, VectorQuantizer2
from refocus_ext.vanilla_var.sampling import gumbel_softmax_with_rng, sample_with_top_k_top_p_
from refocus_ext.vanilla_var.transformer import FFN, AdaLNBeforeHead, AdaLNSelfAttn, DropPath, SelfAttention
from refocus_ext.vanilla_var.var import VAR, SharedAdaLin
from refocus_ext.vanilla_var.vqvae import VQVAE

__all__ = [
    "FFN",
    "VAR",
    "VQVAE",
    "AdaLNBeforeHead",
    "AdaLNSelfAttn",
    "DropPath",
    "Phi",
    "SelfAttention",
    "SharedAdaLin",
    "VectorQuantizer2",
    "gumbel_softmax_with_rng",
    "sample_with_top_k_top_p_",
]
