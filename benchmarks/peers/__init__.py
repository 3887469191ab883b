"""Other people's servers beside marpress, the same model, inputs, cores and clients."""
