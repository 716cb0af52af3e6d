"""Which machine a run with a deadline should be on now. Pure: the caller tells the clock, the prices and what was seen."""
