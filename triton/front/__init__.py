"""The gRPC front: what clients connect to in Triton's place, so that none of them can cut a stream of Triton's."""
