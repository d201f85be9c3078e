"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): read from PEFT folders, held per rank, mixed in a batch."""
