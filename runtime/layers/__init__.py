"""The network's parts, each a subgraph: norms, linear layers, attention, MLP, experts, embedding, head."""
