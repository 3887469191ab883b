"""Scales chosen by what a layer outputs: clipped ranges, activation-aware (AWQ), estimated."""
