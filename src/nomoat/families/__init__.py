"""One idea per file: config, modules, loss and generation."""
