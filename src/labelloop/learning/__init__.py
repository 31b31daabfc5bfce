"""Floor 4: what to label next, and what people made of the predictions."""
