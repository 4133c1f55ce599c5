"""Triton kernels, one file an op; installed as mirnet_fast.kernels."""
