"""online-patching."""
