"""Rounding onto a grid by what a layer reads: clipped ranges, GPTQ, AWQ, estimated scales, AutoRound."""
