"""The choice of blocks: candidates, how long they take, and why."""
