"""What the campaign of kills consists of: nodes, a run that is disturbed, checks, the record."""
