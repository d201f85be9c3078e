"""Guided answers: what a request's guide allows, compiled beside the steps and applied to every row of logits."""
