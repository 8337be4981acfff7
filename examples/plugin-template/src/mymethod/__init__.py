"""A plugin of mvcore. Nothing is imported here, so that listing plugins stays fast."""
