"""`offbeat sweep`: runs that differ in settings and seeds, from one file, and what they show in a table and figures."""
