"""Fused folders in servers of others."""
