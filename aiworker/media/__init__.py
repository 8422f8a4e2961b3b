"""Fetching pictures safely: addresses, sizes, types and pixels are checked before anybody decodes."""
