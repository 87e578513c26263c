"""Vectors, token sets and metadata become segments on disk, committed as versions of an atlas."""
