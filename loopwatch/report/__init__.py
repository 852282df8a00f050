"""Reads journals and shows what is in them."""
