"""The last lines of ``up`` and ``perf``: what was built, how fast it was, what to do next."""
