"""Encrypted chunks on any blob store. Knows nothing of money."""
