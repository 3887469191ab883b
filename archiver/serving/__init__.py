"""TorchServe from the outside: start and stop it, ask it, load it, compare two archives in it."""
