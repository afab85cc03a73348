"""Measurements of the library; not part of the distribution."""
