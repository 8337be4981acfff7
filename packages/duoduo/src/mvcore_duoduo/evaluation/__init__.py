"""Measurements of objects seen in few or many views, and the protocols in which they are published."""
