"""Quantized weights: read from GPTQ, AWQ and FP8 checkpoints, made by the builder, written as the engines want them."""
