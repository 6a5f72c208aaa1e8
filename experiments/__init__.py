"""Thin scripts, one per lab: parse a config, call fn, print the verdict."""
