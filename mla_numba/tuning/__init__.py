"""Plans against each other: rates of the machine, contests, studies and searches."""
