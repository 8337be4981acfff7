"""Plans and runs training."""
