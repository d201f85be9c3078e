"""The front: what clients connect to in Triton's place: none can cut its gRPC streams, none can fill its memory."""
