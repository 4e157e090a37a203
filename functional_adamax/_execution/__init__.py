"""Who steps which leaves, and how: the record of work, the choice, the executors."""
