"""Rendering of meshes to multi-view stores; needs the extra ``mvcore-data[render]``."""
