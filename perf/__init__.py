"""Load tests: locust users, workloads, metrics, reports."""
