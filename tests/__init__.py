"""Tests: test_<package>_<module>.py, functional_<area>_<case>.py on a real node."""
