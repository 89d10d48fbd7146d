"""Model-based deep learning: regularizers, the unrolled network and its training."""
