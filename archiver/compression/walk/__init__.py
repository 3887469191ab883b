"""One walk through a model's layers: what calibration texts say of each layer's inputs, and what is done about it there."""
