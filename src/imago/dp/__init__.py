"""Differential privacy: `strategy=dp`."""
