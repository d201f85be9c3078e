"""Carries out a cutting plan: one pass over the source, all rank files written."""
