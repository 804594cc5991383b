"""The distillation loss: targets are reduced to outcomes, a divergence gives value and slope, the slope becomes the gradient."""
