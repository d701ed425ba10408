"""Adversaries that make up their requests: `python -m tests.fuzz`, and short forms in the tests beside."""
