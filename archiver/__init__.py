"""marpress: compress a Hugging Face model, prove what that cost, package it as a self-contained TorchServe archive."""

__version__ = "0.1.0"
