"""Servers that Parley is compared with."""
