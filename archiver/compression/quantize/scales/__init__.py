"""4-bit scales chosen by what a layer outputs: activation-aware (AWQ) and estimated."""
