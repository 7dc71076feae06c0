"""The command that trains one network: settings, run directory, strategies."""
