"""Centred kernel alignment, linear and with Gaussian kernels, exact or over batches."""
