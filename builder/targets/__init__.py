"""One module per engine target."""
