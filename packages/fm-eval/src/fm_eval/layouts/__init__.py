"""Datasets in the layout of their public download, one module a layout."""
