"""Layouts that `mvcore data unpack` writes."""
