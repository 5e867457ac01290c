"""Plans against each other: rates of the machine, contests, sweeps and searches."""
