"""The machinery of a run: task interface, train step, optimizer, data loader, stages."""
