"""Which rank holds what: TensorRT-LLM's unified layout, from headers and tables alone."""
