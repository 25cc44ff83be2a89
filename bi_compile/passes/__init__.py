"""Rewrites of ATen ops to canonical templates: one family a file."""
