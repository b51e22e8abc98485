"""Slower proofs of what Keysmith promises; each is a target of the Makefile."""
