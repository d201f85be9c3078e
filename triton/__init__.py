"""Finds tritonserver, launches and supervises the MPI world, and speaks to the endpoint."""
