"""fm-eval."""
