"""Fleets: what robots run, what they are kept at, roll-outs, and how versions do in the field."""
