"""What the suite and the scripts of bench/ share: peers, what is timed of them, and how they are checked."""
