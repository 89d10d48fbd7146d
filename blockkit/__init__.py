"""Block-wise model-based deep learning for 3D non-Cartesian MRI."""
