"""ssl-train."""
