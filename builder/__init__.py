"""Checkpoint in, engines out: reader, weight tables, rank layout, sharder, certificate, engine targets, planner."""
