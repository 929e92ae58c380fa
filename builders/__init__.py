"""Architecture in, nn.Module out."""
