"""Slide formats: what the headers of each say about levels, tiles, colours and resolution."""
