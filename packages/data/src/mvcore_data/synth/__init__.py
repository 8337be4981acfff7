"""Procedural textured objects with captions; needs the extra ``mvcore-data[render]``."""
